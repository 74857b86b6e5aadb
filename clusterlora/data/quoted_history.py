"""Dialogues that quote others: their user or system turns hold exchanges of another dialogue as text, as of a history written out."""

from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from clusterlora.data.duplicates import n_words, normalize
from clusterlora.data.phrases import Phrases, Words
from clusterlora.values import Dialogue

TELLING = 6
"""Words that must stand in another dialogue to tell that both are one conversation; "The lights are on." may be said in any."""
_ASKED = 3
"""Words of its question among them, if the person gives the same answer to several."""
_MOST_BETWEEN = 12
"""Most words between a quoted question and its answer, such as "Assistant:", an arrow or a template's marks of turns."""
_MOST_MATCHED = 24
_INSTRUCTION = 3
"""A text that stands in so many of a person's dialogues is an instruction, not a history."""

_Text = tuple[int, str, Words]
"""Position of the dialogue, role, and words of a turn."""


@dataclass(frozen=True, slots=True)
class _Exchange:
    """An answer of the dialogue at `position`, after the words of its question, which are none where nobody asked."""

    position: int
    question: Words
    answer: Words


def quoting_pairs(dialogues: Sequence[Dialogue]) -> Iterator[tuple[int, int]]:
    """Yield pairs of positions of one person's dialogues, where a user or system turn of the second quotes an exchange of the first.

    The whole answer stands there after the end of its question, together six words at least. Words of a template do not count; of an
    answer that is given to several questions, its question must be quoted, too. Where several dialogues have an exchange, all are paired
    with the first that quotes it, and others that quote it with one of them: as groups that pairs connect, this is the same.
    The time taken is proportional to the words, to the answers that stand in other turns, and to the pairs.
    """
    texts = [
        (position, turn.role, tuple(normalize(turn.text).split())) for position, dialogue in enumerate(dialogues) for turn in dialogue.turns
    ]
    asked = {words for _, role, words in texts if role == "user"}
    exchanges = list(_exchanges(texts, _common_ending(asked)))
    n_dialogues = Counter(words for _, words in {(position, words) for position, role, words in texts if role != "assistant"})
    readable = [text for text in texts if text[1] != "assistant" and len(text[2]) >= TELLING and n_dialogues[text[2]] < _INSTRUCTION]
    quotations = list(_quotations(exchanges, readable, frozenset()))
    if template := _template(texts, {other for _, other in quotations}):
        quotations = _quotations(exchanges, readable, template)
    yield from quotations


def _template(texts: Sequence[_Text], quoting: AbstractSet[int]) -> frozenset[str]:
    """Return the words that all user turns have in common, unless a history explains them.

    Where all dialogues but one quote another, they have the first question of their one conversation in common, or ask on about it.
    """
    asked = {words for _, role, words in texts if role == "user"}
    beginnings: dict[int, list[Words]] = {}
    for position, role, words in texts:
        if role == "user" and position not in quoting:
            beginnings.setdefault(position, []).append(words)
    if len({tuple(turns) for turns in beginnings.values()}) <= 1 < len(asked):
        return frozenset()
    first, *others = asked or [()]
    return frozenset(first).intersection(*others)


def _exchanges(texts: Sequence[_Text], ending: int) -> Iterator[_Exchange]:
    """Yield every answer with its question, without the last `ending` words, which all questions have in common."""
    for number, (position, role, words) in enumerate(texts):
        if role == "assistant":
            before, role_before, question = texts[number - 1] if number else (position, "", ())
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
    paired: set[tuple[int, Words]] = set()
    for other, _, words in texts:
        for start, number in phrases.found_in(words):
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
