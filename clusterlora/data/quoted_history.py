"""Dialogues that quote others: their user or system turns hold exchanges of another dialogue as text, as of a history written out."""

from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from clusterlora.data.duplicates import n_words, normalize
from clusterlora.values import Dialogue

TELLING = 6
"""Words that must stand in another dialogue to tell that both are one conversation; "The lights are on." may be said in any."""
_ASKED = 3
"""Words of its question among them, if the person gives the same answer to several."""
_ANCHOR = 3
"""Words in a row by which quotations are looked up."""
_MOST_BETWEEN = 12
"""Most words between a quoted question and its answer, such as "Assistant:", an arrow or a template's marks of turns."""
_MOST_MATCHED = 24
_INSTRUCTION = 3
"""A text that stands in so many of a person's dialogues is an instruction, not a history."""

_Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Exchange:
    """An answer of the dialogue at `position`, after the words of its question, which are none where nobody asked."""

    position: int
    question: _Words
    answer: _Words

    @property
    def anchor(self) -> _Words:
        """The words by which it is looked up: the beginning of the answer, or the end of the question of a shorter one."""
        return self.answer[:_ANCHOR] if len(self.answer) >= _ANCHOR else self.question[-_ANCHOR:]


def quoting_pairs(dialogues: Sequence[Dialogue]) -> Iterator[tuple[int, int]]:
    """Yield pairs of positions of one person's dialogues, where a user or system turn of the second quotes an exchange of the first.

    The whole answer stands there after the end of its question, together six words at least. Words that all of the person's user turns
    have in common, as of a template, do not count; of an answer that is given to several questions, its question must be quoted, too.
    The time taken is proportional to the words and to the quotations.
    """
    texts = [
        (position, turn.role, tuple(normalize(turn.text).split())) for position, dialogue in enumerate(dialogues) for turn in dialogue.turns
    ]
    asked = [words for _, role, words in texts if role == "user"]
    common = frozenset[str]().union(*asked[:1]).intersection(*asked[1:])
    exchanges = list(_exchanges(texts, _common_ending(asked)))
    questions: dict[_Words, set[_Words]] = {}
    for exchange in exchanges:
        if exchange.question:
            questions.setdefault(exchange.answer, set()).add(exchange.question[-_ANCHOR:])
    by_anchor: dict[_Words, list[_Exchange]] = {}
    for exchange in exchanges:
        if len(exchange.anchor) == _ANCHOR:
            by_anchor.setdefault(exchange.anchor, []).append(exchange)
    n_dialogues = Counter(words for _, words in {(position, words) for position, role, words in texts if role != "assistant"})
    for other, role, words in texts:
        if role == "assistant" or len(words) < TELLING or n_dialogues[words] >= _INSTRUCTION:
            continue
        for start, anchor in enumerate(zip(words, words[1:], words[2:], strict=False)):
            for exchange in by_anchor.get(anchor, ()):
                if exchange.position != other:
                    several = len(questions.get(exchange.answer, ())) > 1
                    if _is_quoted(exchange, words, start, common, least_asked=_ASKED if several else 0):
                        yield exchange.position, other


def _exchanges(texts: Sequence[tuple[int, str, _Words]], ending: int) -> Iterator[_Exchange]:
    """Yield every answer with its question, without the last `ending` words, which all questions have in common."""
    for number, (position, role, words) in enumerate(texts):
        if role == "assistant":
            before, role_before, question = texts[number - 1] if number else (position, "", ())
            is_asked = before == position and role_before == "user"
            yield _Exchange(position, question[: len(question) - ending] if is_asked else (), words)


def _common_ending(texts: Sequence[_Words]) -> int:
    """Return the number of words with which all of several different texts end."""
    distinct = set(texts)
    if len(distinct) <= 1:
        return 0
    return next(
        (n for n, last in enumerate(zip(*(reversed(words) for words in distinct), strict=False)) if len(set(last)) > 1),
        min(map(len, distinct)),
    )


def _is_quoted(exchange: _Exchange, words: _Words, start: int, common: AbstractSet[str], *, least_asked: int) -> bool:
    """Return whether these words have the exchange where its anchor starts."""
    answer, question = exchange.answer, exchange.question
    if len(answer) >= _ANCHOR:
        answers, ends = (start,), range(start, max(start - _MOST_BETWEEN, 0) - 1, -1)
    else:
        end = start + _ANCHOR
        answers, ends = range(end, end + _MOST_BETWEEN + 1), (end,)
    if not any(words[at : at + len(answer)] == answer for at in answers):
        return False
    told = n_words(word for word in answer if word not in common)
    n_asked = max((_n_matched(question, words, end, common) for end in ends), default=0.0)
    return told + n_asked >= TELLING and n_asked >= least_asked


def _n_matched(question: _Words, words: _Words, end: int, common: AbstractSet[str]) -> float:
    """Return how many words of the end of the question stand before `end`, without those in common."""
    n = 0
    while n < min(len(question), end, _MOST_MATCHED) and question[-1 - n] == words[end - 1 - n]:
        n += 1
    return n_words(word for word in words[end - n : end] if word not in common)
