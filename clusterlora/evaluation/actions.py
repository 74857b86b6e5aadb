"""Extracts from an answer the devices of a home that it names, and the parameters that it sets.

A rule-based parser reads devices, parameter names and values in their order, sentence by sentence; numbers must be digits. Devices are
also on or off. Questions are skipped: "What temperature would you like?" sets nothing. So are clauses that deny or suppose what they speak
of ("I haven't turned on the TV", "if the TV is on") and what was before ("the TV was on, so I turned it off"). A denial reaches to the end
of its clause: a comma, a conjunction, or the next subject with its verb ("since you are not home the TV is off"), unless the denial governs
that ("I don't think the TV is off") or it is a device without an article ("not to worry TV is off").

Lists are read where a device and its state stand in one line: "TV: off", "TV (off)", "TV – off", "off: TV, lights", a table, JSON. A
heading "Off:" with its devices in the lines below is not.
"""

import re
from bisect import bisect_left, bisect_right
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
_ADVERBS = r"(?:\s+(?:now|currently|already|still|both|all|back|again))*"
_STATES = (
    rf"(?:{_SWITCHED}|(?:is|are|be|(?<!had )been|being|stays?|remains?){_ADVERBS}|['’](?:s|re){_ADVERBS}"
    r"|(?<!was )(?<!were )(?:now|currently|already))"
)
_DEVICE = re.compile(rf"\b(?:{'|'.join(_DEVICES.values())})\b", re.IGNORECASE)
_VERB = r"\s+(?:is|are|was|were|has|have|had|will|stays?|remains?)\b"
_TO_DEVICE = rf"\s+(?:(?!and\b|but\b|then\b|so\b)[\w'-]+:?\s+){{0,4}}?{_DEVICE.pattern}"
_NO_OBJECT = (
    r"(?=\s*(?:\Z|[.,;:!?(){}|*\"'”—–]|-(?!\w)|(?:and|at|with|now|for|again|but|in|to|so|as|until|already|too|please|while|when|because|"
    r"since|from|before|after|during|right now|tonight|today|instead|except)\b))"
)
"""What follows where `on` says that something is switched on: not "on Netflix" or "on the TV"."""
_MOVED = r"(?:turn|switch|power|shut|keep|kept|leave|leaving|left|put|set)(?:ed|ing|s|ting)?"


def _pronoun(pronouns: str, subjects: str) -> str:
    return rf"(?:{_MOVED}\s+(?:{pronouns})(?:\s+(?:both|all|back|to))*|(?:{subjects})(?:\s+|(?=['’])){_STATES})\s+"


_ON_OFF = r"(?:(?:on|off)(?:,?\s+(?:and|then|back|to)|\s*(?:[-=]>|→))+\s+)?(?:on|off)\b"
"""A state; of several in turn ("off and on again") the last."""
_HEADING = rf"(?:{_STATES}\s+|(?<![\w/])(?<!\w\s))(?:on|off)(?=[\s*_]*:[*_]*{_TO_DEVICE}(?!{_VERB}))"

_SWITCHES: Mapping[str, str] = {
    "next": rf"{_SWITCHED}\s+{_ON_OFF}(?={_TO_DEVICE})|{_HEADING}",
    "it": rf"{_pronoun('it', 'it')}{_ON_OFF}{_NO_OBJECT}",
    "them": rf"{_pronoun('them|both|all', 'they|both|all')}{_ON_OFF}{_NO_OBJECT}",
    "last": rf"{_STATES}\s+{_ON_OFF}{_NO_OBJECT}",
    "linked": rf"(?:from\s+(?:on|off)\s+)?to\s+{_ON_OFF}{_NO_OBJECT}",
    "adjacent": rf"{_ON_OFF}{_NO_OBJECT}",
}
"""How a device is switched: "turned off the TV", "off: TV", "it is off", "turned them off",
"the TV in the den is off", "TV to off", "the TV off"."""

_SIGNS = r"[\s*_`|:=→>(){\"'“”–—-]{0,6}"
_LINKED = re.compile(
    rf"{_SIGNS}(?:(?:power|status|state)\b{_SIGNS}|\b(?:in|of)\s[\w\s'’-]{{1,30}}:{_SIGNS})?|\s*\([^()]{{1,30}}\)\s*:{_SIGNS}",
    re.IGNORECASE,
)
"""What may stand between a device and its state in a list: "- **TV**: off", "TV power = on", "TV (off)", "TV in the den: off"."""

_DENIED = re.compile(
    r"\b(?:not(?! (?:only|just|more|less|above|below|over|under)\b)|never|cannot|neither|nor|none|without|unable|fail(?:ed|s)?|forgot|"
    r"refused?|instead of|rather than|if|unless|whether|except|excluding|besides|other than|apart from|(?:all|everything|anything) but|"
    r"no(?! (?:problem|worries|doubt|more|less|higher|lower|fewer|matter)\b))\b|n['’]t\b",
    re.IGNORECASE,
)
"""Words by which a clause denies what it speaks of, excepts it, or supposes it."""
_CLAUSE = re.compile(
    r"[,;:!?()—–]|\b(?:and|(?<!all )(?<!everything )(?<!anything )but|so|then|because|while|although|though)\b"
    r"|(?:(?<=not )|(?<=n['’]t ))(?:too|very)\s+\w+(?=\s+(?:at|with)\b)",
    re.IGNORECASE,
)
"""What ends a clause, and with it a denial; "not too warm at 22 degrees" denies no more than the warmth."""

_PLURAL_VERB = r"\s+(?:are|were|have|had|will|stay|remain)\b"
_NOUN = (
    r"(?:(?:both|all|all of)\s+)?(?:the|your|our|my)\s+"
    rf"(?:(?!(?:the|your|our|my|and|or|but|on|off|in|to|with|so|then|I|you|we|it)\b|{_DEVICE.pattern}|{_VERB[3:]})[\w'’-]+\s+){{0,3}}"
    rf"{_DEVICE.pattern}(?:\s+system)?"
)
_NOUNS = rf"{_NOUN}(?:(?:,\s+|,?\s+(?:and|or|nor)\s+)(?:{_NOUN}|{_DEVICE.pattern})){{1,8}}"
_PLACE = rf"(?:\s+(?:in|of|at|by|for)\s+(?:(?:the|your|our|my)\s+)?[\w'’-]+(?:(?!{_VERB})\s+[\w'’-]+)?)?"
_PERSON = r"(?:(?:I|we)\b(?!['’]d\b|\s+(?:can|could|would|may|might|should)\b)|(?:it|they)(?:" + _VERB + r"|['’](?:s|re|ve|ll)\b))"
_GOVERNING = (
    r"if|unless|whether|that|than|of|except|besides|excluding|from|for|but|no|not|never|neither|nor|none|even|or|to|"
    r"when(?:ever)?|once|until|till|before|after|where|what(?:ever)?|which|who|how|why|way|"
    r"do|does|did|have|has|had|am|are|is|was|were|will|would|can|could|should|shall|may|might|must|"
    r"(?:(?:tell|assure|remind|inform|promise|show)(?:s|d|ed|ing)?|told)\s+(?:you|me|us|them|him|her)|"
    r"(?:think|believe|know|say|recall|remember|see|notice|check|confirm|verif|guarantee|promise|claim|suppose|assume|mean|expect|hope|wish|"
    r"ensure|hear|find|feel|tell|show)(?:y|ies|ied|s|d|ed|ing)?|thought|knew|said|saw|seen|heard|found|felt|told|sure|certain|aware|true|clear|"
    r"likely|possible"
)
_SUBJECT = re.compile(
    rf"\b(?:(?P<governed>{_GOVERNING})\s+(?P<of_governed>(?<=unless\s)[^,;:!?()–—]+|{_PERSON}|(?:{_NOUNS}|{_NOUN}){_PLACE}{_VERB})"
    rf"|(?P<own>{_PERSON}|(?<!\w\s){_NOUNS}{_PLACE}{_VERB}|(?<!\bon\s)(?<!\boff\s){_NOUNS}{_PLACE}{_PLURAL_VERB}|{_NOUN}{_PLACE}{_VERB}))",
    re.IGNORECASE,
)
"""A subject with its verb, which also ends a denial before it, but for what it is governed by: "I don't think the TV is off".

What somebody can or could do is no clause of its own: "if you like I can turn off the TV" is only supposed.
"""

_ASIDE = re.compile(
    rf"[,(–—]\s*(?:(?:and|but)\s+)?(?:not|unlike|rather than|instead of|except(?:\s+for)?)\s[^,()–—]*[,)–—](?={_VERB})", re.IGNORECASE
)
"""What is excepted between a subject and its verb: "the TV, not the lights, is off"."""

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
            *(_group(kind, {"switch": pattern}) for kind, pattern in _SWITCHES.items()),
        )
    ),
    re.IGNORECASE,
)
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
            parser.parse(_Sentence(sentence))
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
        if kind in _SWITCHES:
            name = "on" if match[0].lower().endswith("on") else "off"
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


class _Sentence:
    """A sentence with its tokens, and where its clauses and subjects begin and its denials stand."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = [_Token.of(match) for match in _TOKEN.finditer(text)]
        subjects = list(_SUBJECT.finditer(text))
        self._subjects = [max(match.start("own"), match.start("of_governed")) for match in subjects]
        own = [match.start("own") for match in subjects if not match["governed"]]
        self._clauses = sorted([0, *own, *(match.end() for match in _CLAUSE.finditer(text))])
        self._asides = [range(*match.span()) for match in _ASIDE.finditer(text)]
        self._denials = [match.start() for match in _DENIED.finditer(text) if not self._is_aside(match.start())]

    def denies(self, start: int, end: int) -> bool:
        """Return whether a denial stands between two offsets."""
        return bisect_left(self._denials, start) < bisect_left(self._denials, end)

    def is_denied(self, start: int, end: int) -> bool:
        """Return whether what stands between two offsets is denied, excepted or only supposed, there or before it in its clause."""
        return self.denies(self._clauses[bisect_right(self._clauses, start) - 1], end)

    def _is_aside(self, offset: int) -> bool:
        return any(offset in aside for aside in self._asides)

    def _has_subject_between(self, switch: _Token, token: _Token) -> bool:
        """Return whether a subject begins after the first of two tokens and not after the second (before a switch: with a device)."""
        start, end = sorted((switch.start, token.start))
        return bisect_right(self._subjects, start) < bisect_right(self._subjects, end)

    def listed(self, switch: _Token, others: Sequence[_Token]) -> list[_Token]:
        """Return the first devices of `others`, going away from a switch, that are listed together and not excepted.

        A list does not go on beyond the subject of a verb: "I turned off the TV and the lights are on".
        """
        listed: list[_Token] = []
        for token in others:
            if self._is_aside(token.start):
                continue
            if listed and self._has_subject_between(switch, token):
                break
            if token.kind == "device":
                last = listed[-1] if listed else switch
                start, end = min(last.end, token.end), max(last.start, token.start)
                if (listed and end - start > _LISTED) or self.denies(start, end):
                    break
                listed.append(token)
            elif listed:
                break
        return listed


class _Parser:
    """Collects devices and settings over the sentences of one text."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.settings: dict[tuple[str, str], Value] = {}
        self._latest: list[str] = []
        """The devices that were listed last, for which pronouns stand."""

    def parse(self, sentence: _Sentence) -> None:
        """Parse one sentence. `pending` is a parameter that was named and has no number yet."""
        tokens, n_before = sentence.tokens, len(self.named)
        pending, consumed = None, -1
        for index, token in enumerate(tokens):
            after = [other.name for other in tokens[index + 1 :] if other.kind == "device"]
            if token.kind == "device":
                is_listed = index > 0 and tokens[index - 1].kind == "device" and token.start - tokens[index - 1].end <= _LISTED
                self._latest = [*(self._latest if is_listed else ()), token.name]
                self.named.append(token.name)
                pending = pending if pending and token.name in _OWNERS[pending] else None
            elif token.kind == "name" and token.name in _NUMERIC and index != consumed:
                pending = token.name
            elif token.kind == "word" and not sentence.is_denied(token.start, token.end):
                self._set_word(tokens, index, before=self.named[n_before:], after=after)
            elif token.kind in _SWITCHES:
                self._switch(sentence, index)
            elif token.kind == "number":
                name = "temperature" if token.unit == "°" else pending
                if name is None and _names_parameter(tokens, index + 1, after=token):
                    name, consumed = tokens[index + 1].name, index + 1
                name = name or self._implied_parameter(token, tokens[index - 1] if index else None)
                if name and not sentence.is_denied(token.start, token.end):
                    self._set(_OWNERS[name], token.number, before=self.named[n_before:], after=after)
                pending = None

    def _implied_parameter(self, token: _Token, previous: _Token | None) -> str | None:
        """Return the parameter of a number without a parameter name; None if it may be about anything."""
        device = self.named[-1] if self.named else None
        follows_device = previous is not None and previous.kind == "device" and token.start - previous.end <= 1
        if device is None or not (token.unit or token.is_linked or follows_device):
            return None
        return None if device == "ac" and token.number not in _DEGREES else _UNNAMED[device]

    def _switch(self, sentence: _Sentence, index: int) -> None:
        """Switch the devices that are listed next after a switch or last before it, or for which its pronoun stands."""
        tokens, switch = sentence.tokens, sentence.tokens[index]
        start, names = switch.start, self._latest[-1:] if switch.kind == "it" else self._latest
        if switch.kind not in {"it", "them"}:
            others = tokens[index + 1 :] if switch.kind == "next" else tokens[:index][::-1]
            is_apart = switch.kind in {"linked", "adjacent"} and not (others and others[0].kind == "device")
            if is_apart or (switch.kind == "adjacent" and not _LINKED.fullmatch(sentence.text, others[0].end, switch.start)):
                return
            listed = sentence.listed(switch, others)
            start, names = min(token.start for token in (switch, *listed)), [token.name for token in listed]
        if not sentence.is_denied(start, switch.end):
            self.settings.update({(name, "power"): switch.name for name in names})

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
