"""What an answer says it does to the devices of a home: which ones it names, and what it sets to which value.

Read by rules, sentence by sentence, as devices, names of parameters and values in the order they are said. Numbers are read as
digits. A question sets nothing and is left out, so "What temperature would you like?" is no action.
"""

import re
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

Value = float | str
"""A number (percent, degrees, fan speed) or a word."""

_DEVICES: Mapping[str, str] = {
    "tv": r"tvs?|television",
    "ac": r"ac|a/c|air[- ]?con(?:ditioner|ditioning)?|thermostat",
    "lights": r"lights|lighting|lamps?",
    "speaker": r"speakers?",
    "security": r"security|alarm",
}

_OWNERS: Mapping[str, Mapping[str, str]] = {
    "temperature": {"ac": "temperature"},
    "fan": {"ac": "fan_speed"},
    "volume": {"tv": "volume", "speaker": "volume", "security": "alarm_volume"},
    "brightness": {"tv": "brightness", "lights": "brightness"},
    "mode": {"ac": "mode", "lights": "mode"},
    "color": {"lights": "color"},
    "input": {"tv": "input_source"},
    "equalizer": {"speaker": "equalizer"},
}
"""What a parameter is called, and whose it can be under which name."""

_NUMERIC = ("temperature", "fan", "volume", "brightness")

_SPELLINGS = {"color": "colou?r", "equalizer": "equali[sz]er|eq"}

_WORDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "warm": (r"warm(?:er)?", {"lights": "color"}),
    "cool": (r"cool(?:er|ing)?", {"lights": "color", "ac": "mode"}),
    "neutral": (r"neutral", {"lights": "color"}),
    "static": (r"static", {"lights": "mode"}),
    "dynamic": (r"dynamic", {"lights": "mode"}),
    "heat": (r"heat(?:ing)?", {"ac": "mode"}),
    "auto": (r"auto(?:matic)?", {"ac": "mode"}),
    "hdmi1": (r"hdmi ?1", {"tv": "input_source"}),
    "hdmi2": (r"hdmi ?2", {"tv": "input_source"}),
    "av": (r"av", {"tv": "input_source"}),
    "netflix": (r"netflix", {"tv": "input_source"}),
    "youtube": (r"youtube", {"tv": "input_source"}),
    "bass_boost": (r"bass[- ]boost(?:ed)?", {"speaker": "equalizer"}),
    "treble_boost": (r"treble[- ]boost(?:ed)?", {"speaker": "equalizer"}),
    "balanced": (r"balanced", {"speaker": "equalizer"}),
    "armed": (r"arm(?:ed|ing)", {"security": "armed"}),
    "disarmed": (r"disarm(?:ed|ing)?", {"security": "armed"}),
}

_UNNAMED = {"lights": "brightness", "speaker": "volume", "tv": "volume", "security": "volume", "ac": "temperature"}
"""What a number means right behind a device when nothing says so."""

_DEGREES = range(16, 31)
"""What an air conditioning can be set to: tells a temperature from other numbers that nothing names."""


def _group(prefix: str, patterns: Mapping[str, str]) -> str:
    return "|".join(rf"(?P<{prefix}_{name}>\b(?:{pattern})\b)" for name, pattern in patterns.items())


_NUMBER = (
    r"(?P<number>(?P<link>\b(?:to|at|of|is)\s+|[:=]\s*)?(?<![\w:.])(?P<digits>\d+(?:\.\d+)?)(?![\w:]|\.\d)"
    r"(?!\s*(?:minutes?|hours?|seconds?|am|pm|a\.m|p\.m|o'clock)\b)\s*(?P<unit>%|°|degrees?\b|celsius\b)?)"
)
_TOKEN = re.compile(
    "|".join(
        (
            _NUMBER,
            _group("device", _DEVICES),
            _group("word", {word: pattern for word, (pattern, _) in _WORDS.items()}),
            _group("name", {name: _SPELLINGS.get(name, name) for name in _OWNERS}),
        )
    ),
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^.!?;\n]*(?:[.!?;](?!\s)[^.!?;\n]*)*[.!?;\n]*")


@dataclass(frozen=True, slots=True)
class Actions:
    """The devices that a text names in statements, and the last value of every (device, parameter) that it sets."""

    devices: frozenset[str]
    settings: Mapping[tuple[str, str], Value]


@lru_cache(maxsize=16_384)
def actions(text: str) -> Actions:
    """Return what the text names and sets; both are empty for a text about something else.

    Kept for the texts read last: every method and metric reads the same references.
    """
    reader = _Reader()
    for sentence in _SENTENCE.findall(text):
        if not sentence.rstrip(" \"'»”").endswith("?"):
            reader.read([_Token.of(match) for match in _TOKEN.finditer(sentence)])
    return Actions(frozenset(reader.named) | {device for device, _ in reader.settings}, reader.settings)


def overlap_f1(found: Set[Hashable], wanted: Set[Hashable]) -> float:
    """Return F1 of two sets, in 0..1; two empty sets agree."""
    return 2 * len(found & wanted) / (len(found) + len(wanted)) if found or wanted else 1.0


@dataclass(frozen=True, slots=True)
class _Token:
    """A device, a parameter's name, a value of words or a number, and where it stands in its sentence."""

    kind: str
    said: str
    start: int
    end: int
    number: float = 0.0
    unit: str = ""
    is_linked: bool = False

    @classmethod
    def of(cls, match: re.Match[str]) -> "_Token":
        kind, _, said = str(match.lastgroup).partition("_")
        if kind != "number":
            return cls(kind, said, match.start(), match.end())
        return cls(
            kind,
            "",
            match.start(),
            match.end(),
            float(match["digits"]),
            "%" if match["unit"] == "%" else "°" if match["unit"] else "",
            match["link"] is not None,
        )


def _names(tokens: Sequence[_Token], place: int, *, after: _Token) -> bool:
    """Return whether the token of that place names a parameter of numbers right behind another, as in "70% brightness"."""
    return place < len(tokens) and tokens[place].said in _NUMERIC and tokens[place].start - after.end <= 1


class _Reader:
    """Gathers settings over the sentences of one text."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.settings: dict[tuple[str, str], Value] = {}

    def read(self, tokens: Sequence[_Token]) -> None:
        """Read one sentence's tokens. `waiting` is the parameter that has been named and has no number yet."""
        n_before = len(self.named)
        waiting, consumed = None, -1
        for place, token in enumerate(tokens):
            ahead = [other.said for other in tokens[place + 1 :] if other.kind == "device"]
            if token.kind == "device":
                self.named.append(token.said)
                waiting = waiting if waiting and token.said in _OWNERS[waiting] else None
            elif token.kind == "name" and token.said in _NUMERIC and place != consumed:
                waiting = token.said
            elif token.kind == "word":
                self._set_word(tokens, place, here=self.named[n_before:], ahead=ahead)
            elif token.kind == "number":
                name = "temperature" if token.unit == "°" else waiting
                if name is None and _names(tokens, place + 1, after=token):
                    name, consumed = tokens[place + 1].said, place + 1
                if name := name or self._unnamed(token, tokens[place - 1] if place else None):
                    self._set(_OWNERS[name], token.number, here=self.named[n_before:], ahead=ahead)
                waiting = None

    def _unnamed(self, token: _Token, before: _Token | None) -> str | None:
        """Return what a number means that no parameter's name stands next to; None when it may be about anything."""
        device = self.named[-1] if self.named else None
        follows_device = before is not None and before.kind == "device" and token.start - before.end <= 1
        if device is None or not (token.unit or token.is_linked or follows_device):
            return None
        return None if device == "ac" and token.number not in _DEGREES else _UNNAMED[device]

    def _set_word(self, tokens: Sequence[_Token], place: int, *, here: Sequence[str], ahead: Sequence[str]) -> None:
        """Set a value of words. Without its parameter's name beside it, it needs a device in its sentence: "warm" is not always light."""
        word = tokens[place].said
        owners = _WORDS[word][1]
        beside = [tokens[i].said for i in (place + 1, place - 1) if 0 <= i < len(tokens) and tokens[i].kind == "name"]
        for name in beside:
            if shared := {device: parameter for device, parameter in owners.items() if _OWNERS[name].get(device) == parameter}:
                self._set(shared, word, here=here, ahead=ahead)
                return
        in_sentence = {device: parameter for device, parameter in owners.items() if device in here or device in ahead}
        if in_sentence:
            self._set(in_sentence, word, here=here, ahead=ahead)

    def _set(self, owners: Mapping[str, str], value: Value, *, here: Sequence[str], ahead: Sequence[str]) -> None:
        """Give the value to the nearest owner: before it in the sentence, behind it, in an earlier sentence, or the only one there is."""
        nearest = [*reversed(here), *ahead, *reversed(self.named), *(owners if len(owners) == 1 else ())]
        device = next((device for device in nearest if device in owners), None)
        if device is not None:
            self.settings[device, owners[device]] = value
