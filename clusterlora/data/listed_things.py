"""What prompts list with its label: of what a person rated so far, the rating of a thing that another of their rows asks about."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import chain

from clusterlora.data.escapes import unescaped
from clusterlora.data.phrases import Phrases, Words
from clusterlora.data.words import words
from clusterlora.values import Dialogue

_MARK, _LINE = "|", "\n"
"""What punctuation, and the end of a line, become between words; stars and emoji in a row are a word, and the marks of `C++` and `A+`."""
_MARKS = (_MARK, _LINE)
_SYMBOLS = "\u25cf\u25cb\u2600-\u27bf\u2b50\U0001f300-\U0001faff"
_PUNCTUATION = r"\t\n\r!-/:-@\[-`{-~\u00a1-\u00bf\u060c\u061b\u061f\u0964\u0965\u2010-\u205e\u2190-\u2bff\u3001-\u301f"
_TAGS = r"</[a-z][\w-]{0,20}>(?:\s{0,9}<[a-z][\w-]{0,20}(?: (?:class|style)=\"[^\"<>]{0,80}\")?>)?"
"""The end of an element, and the beginning of the next, as between two cells of a table."""
_CUT = re.compile(
    r"(?P<number>(?<!\d)\d{1,15}\.\d{1,15}(?!\d))"
    rf"|(?P<symbols>[{_SYMBOLS}][{_SYMBOLS}\ufe0e\ufe0f]*)|(?P<suffix>(?<=\w)(?:\+{{1,2}}|#)(?!\w))"
    rf"|(?:{_TAGS}|(?![{_SYMBOLS}])[{_PUNCTUATION}])+"
)
_DIGIT = re.compile(r"\d")
_NO_VARIATION = dict.fromkeys(map(ord, "\ufe0e\ufe0f"))
_MOST_DIGITS = 9
_MOST_MATCHED = 24
"""Words by which a thing is recognised, marks among them; a review has more."""
_Entry = tuple[Words, Words]
"""A thing and its label."""
_ATTRIBUTE = 3
"""So many dialogues that ask about a thing and label it otherwise: it is an attribute of several, such as a genre."""
_TELLING = 3
"""Words of a thing that may stand after any other; fewer must begin an entry, so that `Rings` is not found in `Lord of the Rings`."""


@dataclass(frozen=True, slots=True)
class _Form:
    """How a person's questions and prompts are written, as far as all have it in common.

    All questions begin and end so, and have these words in their first lines or their last; other lines may hold a history, the first entry
    of which stands in nearly all. `between` are words that may stand before a label, such as `rating`: several labels follow them.
    """

    labels: frozenset[Words]
    between: AbstractSet[str]
    label_lengths: tuple[int, ...]
    n_beginning: int = 0
    ending: Words = ()
    first_line: AbstractSet[str] = frozenset()
    last_line: AbstractSet[str] = frozenset()

    @classmethod
    def of(cls, questions: AbstractSet[Words], labels: frozenset[Words], prompts: Iterable[Words]) -> "_Form":
        """Return the form of these different questions; of a single one nothing is known."""
        form = cls(labels, _between(prompts, labels), tuple(sorted({*map(len, labels)} - {0}, reverse=True)))
        if len(questions) <= 1:
            return form
        first, *_ = questions
        n_ending = _n_common(*(question[::-1] for question in questions))
        form = replace(form, n_beginning=_n_common(*questions), ending=first[len(first) - n_ending :])
        return replace(
            form,
            first_line=_shared(_line(question)[:_MOST_MATCHED] for question in questions),
            last_line=_shared(_line(form.up_to_ending(question)[::-1])[:_MOST_MATCHED] for question in questions),
        )

    def up_to_ending(self, question: Words) -> Words:
        """Return a question without how all end."""
        return _bare(question[: len(question) - len(self.ending)])

    def labels_after(self, tokens: Words, start: int, end: int) -> frozenset[Words]:
        """Return the labels after a thing: after punctuation, and after a word between and its punctuation; no number of the next line."""
        if self.ending and tokens[end : end + len(self.ending)] == self.ending:
            end += len(self.ending)
        if tokens[end : end + 1] not in ((_MARK,), (_LINE,)):
            return frozenset()
        is_numbered = tokens[end : end + 2] == (_LINE, _next_number(tokens, start))
        starts = [] if is_numbered else [end + 1]
        if tokens[end + 1 : end + 2] and tokens[end + 1] in self.between:
            starts.append(end + 3 if tokens[end + 2 : end + 3] in ((_MARK,), (_LINE,)) else end + 2)
        # The longest: `C` is none where `C++` stands.
        found = (next((label for n in self.label_lengths if (label := tokens[start : start + n]) in self.labels), None) for start in starts)
        return frozenset(label for label in found if label)


def _between(prompts: Iterable[Words], labels: AbstractSet[Words]) -> AbstractSet[str]:
    """Return the words that stand before several labels in these prompts, where a thing has one; numbers and labels are none."""
    phrases = Phrases(list(labels))
    labels_after: dict[str, set[int]] = {}
    for tokens in prompts:
        for start, number in phrases.found_in(tokens):
            before = tokens[max(start - 2, 0) : start]
            if before:
                labels_after.setdefault(before[0] if before[-1] in _MARKS else before[-1], set()).add(number)
    several = {word for word, after in labels_after.items() if len(after) > 1} - {*_MARKS}
    return {word for word in several if (word,) not in labels and not any(map(str.isdigit, word))}


def _next_number(tokens: Words, start: int) -> str:
    """Return the number after the one that stands before an entry, as in `2. Dune`; nothing where there is none."""
    before = [token for token in tokens[max(start - 2, 0) : start] if token not in _MARKS]
    number = before[-1] if before else ""
    return str(int(number) + 1) if number.isdecimal() and len(number) <= _MOST_DIGITS else ""


class ListedThings:
    """What one person's prompts list with its label, of what their dialogues ask about.

    What a question asks about, its words without those that all of the person's questions share before or after it, stands there as an
    entry, and after it punctuation and the label, with a word between them at most: `Dune (1984): 4`, `"title": "Dune", "rating": 4`. Other
    ratings of the person, as profiles hold them, are none, nor is what several rows ask about and label otherwise, such as a genre. Time is
    proportional to the words.

    Args:
        listing: positions of the dialogues whose prompts are read, by default all.
    """

    def __init__(self, dialogues: Sequence[Dialogue], listing: Iterable[int] | None = None) -> None:
        self._texts = {
            position: frozenset(turn.text for turn in dialogues[position].turns if turn.role != "assistant")
            for position in (range(len(dialogues)) if listing is None else listing)
        }
        prompts = {text: _tokens(text) for text in chain.from_iterable(self._texts.values())}
        asked = [[(_bare(prompts.get(q) or _tokens(q)), _bare(_tokens(a))) for q, a in _asked(dialogue)] for dialogue in dialogues]
        pairs = list(chain.from_iterable(asked))
        form = _Form.of({question for question, _ in pairs}, frozenset(label for _, label in pairs), prompts.values())
        entries = [{(thing, label): None for question, label in own if label for thing in _things(question, form)} for own in asked]
        shared = _shared_things(entries)
        self._entries = [[entry for entry in own if entry[0] not in shared] for own in entries]
        self._listed = self._entries_in(prompts, form)

    def lists(self, listing: int, asked: int) -> bool:
        """Return whether prompts of the dialogue `listing` list what the dialogue `asked` asks about, and ask about another thing."""
        own = {_words_of(thing) for thing, _ in self._entries[listing]}
        others = [entry for entry in self._entries[asked] if _words_of(entry[0]) not in own]
        return any(entry in self._listed[text] for text in self._texts[listing] for entry in others)

    def answered(self) -> frozenset[int]:
        """Return the positions of the dialogues whose thing stands with its label in a prompt that is read."""
        listed = set(chain.from_iterable(self._listed.values()))
        return frozenset(position for position, entries in enumerate(self._entries) if not listed.isdisjoint(entries))

    def _entries_in(self, prompts: Mapping[str, Words], form: _Form) -> Mapping[str, AbstractSet[_Entry]]:
        """Return the things with their labels that stand in each text."""
        asked = set(chain.from_iterable(self._entries))
        things = list(dict.fromkeys(thing for entries in self._entries for thing, _ in entries))
        phrases = Phrases(things)
        listed: dict[str, set[_Entry]] = {}
        for text, tokens in prompts.items():
            own = listed.setdefault(text, set())
            for start, number in phrases.found_in(tokens):
                thing = things[number]
                if start == 0 or tokens[start - 1] in _MARKS or _n_telling(thing, form.first_line | form.last_line) >= _TELLING:
                    own |= asked.intersection((thing, label) for label in form.labels_after(tokens, start, start + len(thing)))
        return listed


def _shared_things(entries: Sequence[Iterable[_Entry]]) -> AbstractSet[Words]:
    """Return what so many dialogues ask about, with different labels: an attribute rather than a thing."""
    labels_by_thing: dict[Words, list[Words]] = {}
    for thing, label in chain.from_iterable(entries):
        labels_by_thing.setdefault(thing, []).append(label)
    return {thing for thing, labels in labels_by_thing.items() if len(labels) >= _ATTRIBUTE and len(set(labels)) > 1}


def _words_of(thing: Words) -> frozenset[str]:
    return frozenset(thing) - {*_MARKS}


def _asked(dialogue: Dialogue) -> Iterator[tuple[str, str]]:
    """Yield the questions of a dialogue with their answers."""
    for before, turn in zip(dialogue.turns, dialogue.turns[1:], strict=False):
        if (before.role, turn.role) == ("user", "assistant"):
            yield before.text, turn.text


def _tokens(text: str) -> Words:
    """Return the words of a text with a mark for punctuation between them; 4.0 is 4, in whatever digits, and 4.5 is one word."""
    plain = unicodedata.normalize("NFKC", unescaped(text)).casefold()
    if not plain.isascii():
        plain = _DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), plain)
    tokens: list[str] = []
    end = 0
    for cut in _CUT.finditer(plain):
        tokens += words(plain[end : cut.start()])
        end = cut.end()
        if cut["number"]:
            tokens.append(repr(float(cut["number"])).removesuffix(".0"))
            continue
        if cut["symbols"] or cut["suffix"]:
            tokens.append(cut[0].translate(_NO_VARIATION))
            continue
        mark = _LINE if "\n" in cut[0] else _MARK
        if tokens and tokens[-1] in _MARKS:
            mark = max(tokens.pop(), mark, key=_MARKS.index)
        tokens.append(mark)
    return (*tokens, *words(plain[end:]))


def _bare(tokens: Words) -> Words:
    """Return the tokens without marks at both ends."""
    start, end = 0, len(tokens)
    while start < end and tokens[start] in _MARKS:
        start += 1
    while start < end and tokens[end - 1] in _MARKS:
        end -= 1
    return tokens[start:end]


def _n_common(*texts: Words) -> int:
    """Return the number of words with which all of these begin, one less than the shortest has at most."""
    shortest = min(map(len, texts))
    return next((n for n, column in enumerate(zip(*texts, strict=False)) if len(set(column)) > 1), max(shortest - 1, 0))


def _line(tokens: Words) -> Words:
    """Return the tokens up to the first line break."""
    return tokens[: tokens.index(_LINE)] if _LINE in tokens else tokens


def _shared(lines: Iterable[Words]) -> AbstractSet[str]:
    """Return the words that stand in all of these lines."""
    first, *others = lines
    return frozenset(first).intersection(*others) - {*_MARKS}


def _n_telling(thing: Words, shared: AbstractSet[str]) -> int:
    return sum(word not in shared and word not in _MARKS for word in thing)


def _things(question: Words, form: _Form) -> Iterator[Words]:
    """Yield what a question may ask about: the end of its last line, or what its first line goes on with after the common beginning.

    It begins, or ends, at a word that all questions share, or at the line's; what a label follows is an entry of the history.
    """
    last = _line(form.up_to_ending(question)[::-1])
    for n in _bounds(last, form.last_line, form):
        yield last[: min(n, _MOST_MATCHED)][::-1]
    rest = _bare(question[form.n_beginning :])
    first = _line(rest)
    for n in _bounds(first, form.first_line, form):
        if not form.labels_after(rest, 0, n):
            yield first[max(n - _MOST_MATCHED, 0) : n]


def _bounds(line: Words, shared: AbstractSet[str], form: _Form) -> Iterator[int]:
    """Yield how many words of a line, or of one that is reversed, may be a thing."""
    for n in {*range(1, min(len(line), _MOST_MATCHED) + 1), len(line)}:
        following = line[n : n + 2]
        is_mark = following[:1] == (_MARK,)
        bound = following[is_mark : is_mark + 1]
        is_bound = not bound or bound[0] in shared or (is_mark and bound in form.labels)
        if is_bound and line[n - 1 : n] not in ((), (_MARK,)) and _n_telling(line[:n], shared):
            yield n
