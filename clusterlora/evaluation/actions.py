"""Extracts from an answer the devices of a home that it names, and the parameters that it sets.

A rule-based parser reads devices, parameter names and values in their order, sentence by sentence; numbers must be digits. Devices are
also on or off. Questions are skipped: "What temperature would you like?" sets nothing.
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
"""Per parameter name: the devices that have it, and what it is called there."""

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
"""The parameter of a number that directly follows a device."""

_DEGREES = range(16, 31)
"""Temperatures that an air conditioning can be set to; other unnamed numbers near it are not temperatures."""


_SWITCHED = r"(?:turn|switch|power|shut)(?:ed|ing|s|ting)?"
_STATES = rf"(?:{_SWITCHED}|is|are|was|were|be|been|being|now|currently|already|stays?|remains?)"
_OF_DEVICE = rf"(?=\s+(?:(?!and\b|but\b|then\b|so\b)[\w'-]+\s+){{0,4}}?(?:{'|'.join(_DEVICES.values())})\b)"
_NO_OBJECT = r"(?=\s*(?:\Z|[.,;:!?)\"'”—–-]|(?:and|at|with|now|for|again|but|in|to|so|as|until|already|too|please|while|when)\b))"
"""What follows where `on` says that something is switched on: not "on Netflix" or "on the TV"."""

_SWITCHES: Mapping[str, Mapping[str, str]] = {
    "next": {state: rf"{_SWITCHED}\s+{state}\b{_OF_DEVICE}" for state in ("on", "off")},
    "last": {state: rf"{_STATES}\s+{state}\b{_NO_OBJECT}" for state in ("on", "off")},
    "adjacent": {state: rf"{state}\b{_NO_OBJECT}" for state in ("on", "off")},
}
"""How a device is switched: "turned off the TV", "the TV in the den is off", "the TV off"."""

_LISTED = len(", and the ")
"""Characters at most between devices that are switched together."""


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
            *(_group(kind, pattern_by_state) for kind, pattern_by_state in _SWITCHES.items()),
        )
    ),
    re.IGNORECASE,
)
_DEVICE = re.compile(rf"\b(?:{'|'.join(_DEVICES.values())})\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[^.!?;\n]*(?:[.!?;](?!\s)[^.!?;\n]*)*[.!?;\n]*")


@dataclass(frozen=True, slots=True)
class Actions:
    """The devices that a text names, and the last value of every (device, parameter) that it sets."""

    devices: frozenset[str]
    settings: Mapping[tuple[str, str], Value]


@lru_cache(maxsize=16_384)
def actions(text: str) -> Actions:
    """Return the devices that the text names and the parameters that it sets.

    Cached, because every method and metric parses the same references.
    """
    parser = _Parser()
    for sentence in _SENTENCE.findall(text):
        if not sentence.rstrip(" \"'»”").endswith("?"):
            parser.parse([_Token.of(match) for match in _TOKEN.finditer(sentence)])
    return Actions(frozenset(parser.named) | {device for device, _ in parser.settings}, parser.settings)


def names_a_device(text: str) -> bool:
    """Return whether the text names a device. A text that sets degrees may do so without: it may also be a recipe."""
    return _DEVICE.search(text) is not None


def overlap_f1(answer: Set[Hashable], reference: Set[Hashable]) -> float:
    """Return F1 of two sets, in 0..1; two empty sets score 1."""
    return 2 * len(answer & reference) / (len(answer) + len(reference)) if answer or reference else 1.0


@dataclass(frozen=True, slots=True)
class _Token:
    """A device, a parameter name, a word value, a switch or a number, with its offsets in the sentence."""

    kind: str
    name: str
    start: int
    end: int
    number: float = 0.0
    unit: str = ""
    is_linked: bool = False

    @classmethod
    def of(cls, match: re.Match[str]) -> "_Token":
        kind, _, name = str(match.lastgroup).partition("_")
        if kind != "number":
            return cls(kind, name, match.start(), match.end())
        return cls(
            kind,
            "",
            match.start(),
            match.end(),
            float(match["digits"]),
            "%" if match["unit"] == "%" else "°" if match["unit"] else "",
            match["link"] is not None,
        )


def _names_parameter(tokens: Sequence[_Token], index: int, *, after: _Token) -> bool:
    """Return whether a token names a numeric parameter directly after another token, as in "70% brightness"."""
    return index < len(tokens) and tokens[index].name in _NUMERIC and tokens[index].start - after.end <= 1


class _Parser:
    """Collects devices and settings over the sentences of one text."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.settings: dict[tuple[str, str], Value] = {}

    def parse(self, tokens: Sequence[_Token]) -> None:
        """Parse one sentence. `pending` is a parameter that was named and has no number yet."""
        n_before = len(self.named)
        pending, consumed = None, -1
        for index, token in enumerate(tokens):
            after = [other.name for other in tokens[index + 1 :] if other.kind == "device"]
            if token.kind == "device":
                self.named.append(token.name)
                pending = pending if pending and token.name in _OWNERS[pending] else None
            elif token.kind == "name" and token.name in _NUMERIC and index != consumed:
                pending = token.name
            elif token.kind == "word":
                self._set_word(tokens, index, before=self.named[n_before:], after=after)
            elif token.kind in _SWITCHES:
                self._switch(tokens, index)
            elif token.kind == "number":
                name = "temperature" if token.unit == "°" else pending
                if name is None and _names_parameter(tokens, index + 1, after=token):
                    name, consumed = tokens[index + 1].name, index + 1
                if name := name or self._implied_parameter(token, tokens[index - 1] if index else None):
                    self._set(_OWNERS[name], token.number, before=self.named[n_before:], after=after)
                pending = None

    def _implied_parameter(self, token: _Token, previous: _Token | None) -> str | None:
        """Return the parameter of a number without a parameter name; None if it may be about anything."""
        device = self.named[-1] if self.named else None
        follows_device = previous is not None and previous.kind == "device" and token.start - previous.end <= 1
        if device is None or not (token.unit or token.is_linked or follows_device):
            return None
        return None if device == "ac" and token.number not in _DEGREES else _UNNAMED[device]

    def _switch(self, tokens: Sequence[_Token], index: int) -> None:
        """Switch the devices that are listed next after a switch, or last before it."""
        switch = tokens[index]
        others = tokens[index + 1 :] if switch.kind == "next" else tokens[:index][::-1]
        if switch.kind == "adjacent" and not (others and others[0].kind == "device" and switch.start - others[0].end <= 1):
            return
        start = next((i for i, token in enumerate(others) if token.kind == "device"), len(others))
        last: _Token | None = None
        for token in others[start:]:
            gap = 0 if last is None else max(token.start - last.end, last.start - token.end)
            if token.kind != "device" or gap > _LISTED:
                return
            self.settings[token.name, "power"] = switch.name
            last = token

    def _set_word(self, tokens: Sequence[_Token], index: int, *, before: Sequence[str], after: Sequence[str]) -> None:
        """Set a word value. Without its parameter's name next to it, it needs a device in its sentence: "warm" is not always a light."""
        word = tokens[index].name
        owners = _WORDS[word][1]
        adjacent = [tokens[i].name for i in (index + 1, index - 1) if 0 <= i < len(tokens) and tokens[i].kind == "name"]
        for name in adjacent:
            if shared := {device: parameter for device, parameter in owners.items() if _OWNERS[name].get(device) == parameter}:
                self._set(shared, word, before=before, after=after)
                return
        in_sentence = {device: parameter for device, parameter in owners.items() if device in before or device in after}
        if in_sentence:
            self._set(in_sentence, word, before=before, after=after)

    def _set(self, owners: Mapping[str, str], value: Value, *, before: Sequence[str], after: Sequence[str]) -> None:
        """Set the parameter of the nearest owner: earlier in the sentence, later in it, in an earlier sentence, or the only owner."""
        nearest = [*reversed(before), *after, *reversed(self.named), *(owners if len(owners) == 1 else ())]
        device = next((device for device in nearest if device in owners), None)
        if device is not None:
            self.settings[device, owners[device]] = value
