"""Dialogues that quote others: their user or system turns hold exchanges of another dialogue as text, as of a history written out."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain

from clusterlora.data.duplicates import n_words, normalize
from clusterlora.data.escapes import unescaped
from clusterlora.data.phrases import Phrases, Words
from clusterlora.values import Dialogue

TELLING = 6
"""Words that must stand in another dialogue to tell that both are one conversation; "The lights are on." may be said in any."""
_ASKED = 3
"""Words of its question among them, if the person gives the same answer to several."""
_MOST_BETWEEN = 12
"""Most words between a quoted question and its answer, such as "Assistant:", an arrow or a template's marks of turns."""
_MOST_MATCHED = 24
_LONGEST_QUESTION = 300
_INSTRUCTION = 3
"""A text that stands in so many of a person's dialogues is an instruction, not a history."""

_ELLIPSIS = re.compile(r"\.{3,}|…+")
_OPENING = " \t\n[({<"
"""What may stand between a word and the ellipsis after it, as in [...]."""

_Text = tuple[int, str, Words, frozenset[int]]
"""Position of the dialogue, role, and words of a turn; how many words stand before each ellipsis in it."""


@dataclass(frozen=True, slots=True)
class _Exchange:
    """An answer of the dialogue at `position`, after the words of its question, which are none where nobody asked."""

    position: int
    question: Words
    answer: Words


def quoting_pairs(dialogues: Sequence[Dialogue]) -> Iterator[tuple[int, int]]:
    """Yield pairs of positions of one person's dialogues, where a user or system turn of the second quotes an exchange of the first.

    The whole answer stands there after the end of its question, together six words at least. Words of a template do not count; of an
    answer that is given to several questions, its question must be quoted, too. Of an answer the beginning is enough before an ellipsis
    (`_CutAnswers`). The history may be escaped, as in JSON or HTML. Where several dialogues have an exchange, all are paired with the first
    that quotes it, and others that quote it with one of them: as groups that pairs connect, this is the same.
    The time taken is proportional to the words, to the answers that stand in other turns, and to the pairs.
    """
    texts = [(position, turn.role, *_read(turn.text)) for position, dialogue in enumerate(dialogues) for turn in dialogue.turns]
    asked = {words for _, role, words, _ in texts if role == "user"}
    exchanges = list(_exchanges(texts, _common_ending(asked)))
    n_dialogues = Counter(words for _, words in {(position, words) for position, role, words, _ in texts if role != "assistant"})
    readable = [text for text in texts if text[1] != "assistant" and len(text[2]) >= TELLING and n_dialogues[text[2]] < _INSTRUCTION]
    quotations = list(_quotations(exchanges, readable, frozenset()))
    if template := _template(texts, {other for _, other in quotations}):
        quotations = _quotations(exchanges, readable, template)
    yield from quotations


def wholly_quoting_pairs(dialogues: Sequence[Dialogue]) -> Iterator[tuple[int, int]]:
    """Yield those of `quoting_pairs` in which the second quotes a whole question of the first, but for how all questions begin and end.

    Where answers are labels, the end of a question and its label may stand anywhere: a list of other things is no quotation. Nor is a
    question with more than 300 words, which holds a history itself; to look for all of these takes time by the cube of the rows.
    """
    questions = [{_read(turn.text)[0] for turn in dialogue.turns if turn.role == "user"} for dialogue in dialogues]
    prompts = ["".join(f" {' '.join(_read(turn.text)[0])} " for turn in d.turns if turn.role != "assistant") for d in dialogues]
    distinct = frozenset(chain.from_iterable(questions))
    start, end = _common_ending(frozenset(words[::-1] for words in distinct)), _common_ending(distinct)
    told = [[words[start : len(words) - end] for words in own if len(words) - start - end <= _LONGEST_QUESTION] for own in questions]
    for quoted, quoting in quoting_pairs(dialogues):
        if any(f" {' '.join(words)} " in prompts[quoting] for words in told[quoted] if words):
            yield quoted, quoting


def _read(text: str) -> tuple[Words, frozenset[int]]:
    """Return the words of a text that may be escaped, and how many stand before each ellipsis."""
    *cut, last = _ELLIPSIS.split(unescaped(text))
    if not cut:
        return tuple(normalize(last).split()), frozenset()
    words: list[str] = []
    ends: list[int] = []
    for piece in (*(piece.rstrip(_OPENING) for piece in cut), last):
        # Punctuation alone is no word beside others.
        words += normalize(piece).split() if any(map(str.isalnum, piece)) else ()
        ends.append(len(words))
    return tuple(words), frozenset(ends[:-1])


def _template(texts: Sequence[_Text], quoting: AbstractSet[int]) -> frozenset[str]:
    """Return the words that all user turns have in common, unless a history explains them.

    Where all dialogues but one quote another, they have the first question of their one conversation in common, or ask on about it.
    """
    asked = {words for _, role, words, _ in texts if role == "user"}
    beginnings: dict[int, list[Words]] = {}
    for position, role, words, _ in texts:
        if role == "user" and position not in quoting:
            beginnings.setdefault(position, []).append(words)
    if len({tuple(turns) for turns in beginnings.values()}) <= 1 < len(asked):
        return frozenset()
    first, *others = asked or [()]
    return frozenset(first).intersection(*others)


def _exchanges(texts: Sequence[_Text], ending: int) -> Iterator[_Exchange]:
    """Yield every answer with its question, without the last `ending` words, which all questions have in common."""
    for number, (position, role, words, _) in enumerate(texts):
        if role == "assistant":
            before, role_before, question, _ = texts[number - 1] if number else (position, "", (), ())
            is_asked = before == position and role_before == "user"
            yield _Exchange(position, question[: len(question) - ending] if is_asked else (), words)


def _common_ending(distinct: AbstractSet[Words]) -> int:
    """Return the number of words with which all of several different texts end."""
    if len(distinct) <= 1:
        return 0
    return next(
        (n for n, last in enumerate(zip(*(reversed(words) for words in distinct), strict=False)) if len(set(last)) > 1),
        min(map(len, distinct)),
    )


def _quotations(exchanges: Sequence[_Exchange], texts: Sequence[_Text], template: AbstractSet[str]) -> Iterator[tuple[int, int]]:
    """Yield the positions of an exchange's dialogue and of another that quotes it in one of the texts."""
    by_answer = _positions(exchanges, template)
    answers = list(by_answer)
    lengths = [sorted({len(ending) for ending in by_answer[answer]}) for answer in answers]
    phrases = Phrases(answers)
    cut = _CutAnswers(phrases, answers, exchanges, template) if any(ends for *_, ends in texts) else None
    paired: set[tuple[int, Words]] = set()
    for other, _, words, ends in texts:
        for start, number in chain(phrases.found_in(words), cut.found_in(words, ends) if cut else ()):
            positions_by_ending = by_answer[answers[number]]
            before = {
                words[end - n : end] for end in range(start, max(start - _MOST_BETWEEN, 0) - 1, -1) for n in lengths[number] if n <= end
            }
            for ending in before & positions_by_ending.keys():
                others = (position for position in positions_by_ending[ending] if position != other)
                if (number, ending) in paired:
                    others = [position for position in [next(others, None)] if position is not None]
                paired.add((number, ending))
                yield from ((position, other) for position in others)


class _CutAnswers:
    """Finds answers of which a history holds the beginning alone, before an ellipsis.

    It has six words with which no other answer begins and that its question does not give it, as `Go on: once upon a time ...` does; or
    fewer, three at least, and after an end of a question that has this answer alone they are six together.
    """

    def __init__(self, phrases: Phrases, answers: Sequence[Words], exchanges: Sequence[_Exchange], template: AbstractSet[str]) -> None:
        self._phrases, self._answers, self._template = phrases, answers, template
        numbers = {answer: number for number, answer in enumerate(answers)}
        self._answers_by_ending: list[dict[Words, int | None]] = [{} for _ in range(TELLING + 1)]
        """By an end of a question with so many words that tell, its answer; None where it has several."""
        self._asked: dict[int, list[str]] = {}
        for exchange in exchanges:
            number = numbers.get(exchange.answer)
            if number is not None:
                self._asked.setdefault(number, []).append(f" {' '.join(exchange.question)} ")
            for least, by_ending in enumerate(self._answers_by_ending):
                if number is not None and (ending := _ending(exchange.question, least, template)):
                    by_ending[ending] = number if by_ending.get(ending, number) == number else None
        self._lengths = [sorted(set(map(len, by_ending))) for by_ending in self._answers_by_ending]

    def found_in(self, words: Words, ends: AbstractSet[int]) -> Iterator[tuple[int, int]]:
        """Yield where an answer starts that is cut at one of `ends`, and its number."""
        for start, end, number in self._phrases.begun_in(words, ends):
            beginning = words[start:end]
            told = int(n_words(word for word in beginning if word not in self._template))
            if told < TELLING or number is None or self._is_given(number, beginning[:-1]):
                number = self._asked_before(words, start, TELLING - told if told < TELLING else _ASKED)
            if number is not None and _begins(self._answers[number], beginning):
                yield start, number

    def _is_given(self, number: int, beginning: Words) -> bool:
        """Return whether every question of an answer holds how it begins."""
        words = f" {' '.join(beginning)} "
        return all(words in question for question in self._asked[number])

    def _asked_before(self, words: Words, start: int, least: int) -> int | None:
        """Return the answer to the question that ends last before, with so many words that tell."""
        by_ending, lengths = self._answers_by_ending[least], self._lengths[least]
        asked = (words[end - n : end] for end in range(start, max(start - _MOST_BETWEEN, 0) - 1, -1) for n in lengths if n <= end)
        return next((number for ending in asked if (number := by_ending.get(ending)) is not None), None)


def _begins(answer: Words, beginning: Words) -> bool:
    """Return whether an answer begins so, of which the last word may be cut."""
    n = len(beginning)
    return _ASKED <= n <= len(answer) and answer[: n - 1] == beginning[:-1] and answer[n - 1].startswith(beginning[-1])


def _positions(exchanges: Sequence[_Exchange], template: AbstractSet[str]) -> dict[Words, dict[Words, dict[int, None]]]:
    """Return the dialogues that have an exchange: by its answer, and by the end of its question that must be quoted before that."""
    questions: dict[Words, set[Words]] = {}
    for exchange in exchanges:
        if exchange.question:
            questions.setdefault(exchange.answer, set()).add(exchange.question[-_ASKED:])
    positions: dict[Words, dict[Words, dict[int, None]]] = {}
    for exchange in exchanges:
        told = n_words(word for word in exchange.answer if word not in template)
        least_asked = _ASKED if len(questions.get(exchange.answer, ())) > 1 else 0
        ending = _ending(exchange.question, max(TELLING - told, least_asked), template)
        if ending is not None:
            positions.setdefault(exchange.answer, {}).setdefault(ending, {})[exchange.position] = None
    return positions


def _ending(question: Words, least: float, template: AbstractSet[str]) -> Words | None:
    """Return the shortest end of a question with so many words that are none of the template's; None if it has too few."""
    n = 0
    while least > 0 and n < min(len(question), _MOST_MATCHED):
        n += 1
        least -= n_words([question[-n]]) if question[-n] not in template else 0
    return question[len(question) - n :] if least <= 0 else None
