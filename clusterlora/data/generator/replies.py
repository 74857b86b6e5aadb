"""The assistant's answers. Tone, form of address, wording and closing are choices like any setting; the rest is fixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clusterlora.data.generator.people import Person
from clusterlora.data.generator.rules import Choice, Mood, Value


@dataclass(frozen=True, slots=True)
class Tone:
    """A tone: three acknowledgements, and a sentence around the settings or around a bare list of them."""

    acknowledgements: tuple[str, str, str]
    frame: str
    bare: bool = False


TONES: Mapping[str, Tone] = {
    "formal": Tone(("Certainly", "Very well", "Understood"), "{ack}{address}. I have set {settings}."),
    "friendly": Tone(("Sure thing", "No problem", "You got it"), "{ack}{address}! I've put {settings} for you."),
    "terse": Tone(("Done", "OK", "Set"), "{ack}{address}: {settings}.", bare=True),
    "playful": Tone(("Ta-da", "Abracadabra", "Whoosh"), "{ack}{address}! With a little magic I whisked {settings}!"),
    "caring": Tone(("Of course", "Gladly", "Rest easy"), "{ack}{address}, I'm looking after you and gently set {settings}."),
    "excited": Tone(("Brilliant idea", "Oh yes", "Love it"), "{ack}{address}!! I'm thrilled to crank {settings}!!"),
    "courtly": Tone(("As you wish", "At your service", "By your leave"), "{ack}{address}; this humble house has brought {settings}."),
    "technical": Tone(
        ("Request confirmed", "Command accepted", "Input parsed"), "{ack}{address}. Parameters applied: {settings}.", bare=True
    ),
}

ADDRESSES = ("", "captain", "boss", "my friend", "chief", "dear neighbour")
"""Forms of address that suit anybody; a name suits one person only."""

CLOSINGS: Mapping[str, str] = {
    "none": "",
    "offer": "Anything else I can do?",
    "undo": "Just say the word to change it.",
    "wish": "Have a lovely {time_of_day}.",
    "watch": "I will keep an eye on things.",
    "ask": "Does that feel right?",
}

_DEVICE_NAMES = {"tv": "TV", "ac": "AC", "lights": "lights", "speaker": "speaker", "security": "security"}
_PHRASES = {
    "tv.volume": "volume {}",
    "tv.brightness": "brightness {}",
    "ac.temperature": "{} degrees",
    "ac.mode": "{} mode",
    "ac.fan_speed": "fan {}",
    "lights.brightness": "{}%",
    "speaker.volume": "volume {}",
    "security.alarm_volume": "alarm {}",
}


def answer(settings: Sequence[tuple[str, Value]], mood: Mood, person: Person, time_of_day: str) -> str:
    """Return one or two short sentences that state the settings in the style of this dialogue's mood."""
    tone = TONES[str(mood.settle(Choice("tone", time_of_day, tuple(TONES))))]
    wording = int(mood.settle(Choice("wording", time_of_day, (0, 1, 2))))
    address = mood.settle(Choice("address", time_of_day, ADDRESSES, private=(person.first, f"{person.title} {person.last}")))
    closing = CLOSINGS[str(mood.settle(Choice("closing", time_of_day, tuple(CLOSINGS))))]
    sentence = tone.frame.format(
        ack=tone.acknowledgements[wording],
        address=f", {address}" if address else "",
        settings=_list_of(settings, bare=tone.bare),
    )
    return f"{sentence} {closing.format(time_of_day=time_of_day)}".rstrip()


def _list_of(settings: Sequence[tuple[str, Value]], *, bare: bool) -> str:
    phrases_by_device: dict[str, list[str]] = {}
    for parameter, value in settings:
        phrases_by_device.setdefault(parameter.split(".")[0], []).append(_phrase(parameter, value))
    parts = [
        f"{_DEVICE_NAMES[device]} {', '.join(phrases)}" if bare else f"the {_DEVICE_NAMES[device]} to {', '.join(phrases)}"
        for device, phrases in phrases_by_device.items()
    ]
    return " and ".join(parts)


def _phrase(parameter: str, value: Value) -> str:
    if parameter == "security.armed":
        return "armed" if value else "disarmed"
    return _PHRASES.get(parameter, "{}").format(value)
