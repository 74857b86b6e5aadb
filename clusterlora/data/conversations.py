"""Dialogues that repeat turns of one another: rows of one conversation, each with the history so far.

Many exports write a row per exchange and put what was said before into its `messages`, its prompt or its system text. Such rows are one
conversation: split apart, the answer that is scored in one of them stands in the history of another that is trained on.
"""

from collections.abc import Iterator, Sequence

from clusterlora.data.duplicates import UnionFind, duplicate_groups, n_words, normalize
from clusterlora.data.quoted_history import TELLING, quoting_pairs, wholly_quoting_pairs
from clusterlora.values import Dialogue

_FORK = 3
"""Turns with which two dialogues that go on otherwise begin alike if they are one conversation: an exchange and what was asked next."""

Turns = tuple[int, ...]
"""The turns of a dialogue without its system turn, each as the number of its role and normalised text."""


def beginnings(dialogues: Sequence[Dialogue]) -> frozenset[int]:
    """Return the positions of dialogues with which a longer dialogue begins, which has the same split or, like them, none.

    All that they ask and answer is in the longer one, after the same turns and the same system turn. Equal dialogues are not among them.
    """
    turns = numbered_turns(dialogues)
    positions: dict[object, list[int]] = {}
    for position, dialogue in enumerate(dialogues):
        positions.setdefault((_system(dialogue), dialogue.split, turns[position]), []).append(position)
    shorter: set[int] = set()
    for dialogue, own in zip(dialogues, turns, strict=True):
        for length in range(1, len(own)):
            shorter.update(positions.get((_system(dialogue), dialogue.split, own[:length]), ()))
    return frozenset(shorter)


def overlapping_pairs(dialogues: Sequence[Dialogue]) -> Iterator[tuple[int, int]]:
    """Yield pairs of positions of dialogues that share turns as parts of one conversation do.

    One of the two is contained in the other, or begins with the turns with which the other ends: an exchange at least, or an answer of
    six words that the person gives to no other question. Or both begin with the same exchange, of such an answer, and the same next
    question.
    """
    turns = numbered_turns(dialogues)
    answers = [[turn.role == "assistant" for turn in dialogue.turns if turn.role != "system"] for dialogue in dialogues]
    telling = _telling_answers(dialogues, turns)
    forks: dict[Turns, int] = {}
    occurrences: dict[int, list[tuple[int, int]]] = {}
    for position, own in enumerate(turns):
        for offset, turn in enumerate(own):
            occurrences.setdefault(turn, []).append((position, offset))
    for position, own in enumerate(turns):
        if not own:
            continue
        if len(own) > _FORK and own[1] in telling and answers[position][:_FORK] == [False, True, False]:
            first = forks.setdefault(own[:_FORK], position)
            if first != position:
                yield first, position
        for other, offset in occurrences[own[0]]:
            n_shared = min(len(own), len(turns[other]) - offset)
            shared = own[:n_shared] == turns[other][offset : offset + n_shared]
            if other != position and shared and (any(answers[position][1:n_shared]) or own[0] in telling):
                yield position, other


def related_groups(dialogues: Sequence[Dialogue], *, labelled: bool = False, quoted: bool = True) -> tuple[tuple[int, ...], ...]:
    """Return groups of positions that belong on one side of a split: (near) duplicates, and parts of one conversation.

    Args:
        quoted: whether a dialogue that another's prompt quotes is a part of one conversation with it.
    """
    sets = UnionFind(len(dialogues))
    for group in duplicate_groups(dialogues, labelled=labelled):
        for position in group:
            sets.union(group[0], position)
    for left, right in _sharing_pairs(dialogues, labelled=labelled, quoted=quoted):
        sets.union(left, right)
    return sets.groups()


def n_overlapping(dialogues: Sequence[Dialogue], *, labelled: bool = False, quoted: bool = True) -> int:
    """Return the number of a person's dialogues that repeat what is said in another, whole dialogues said again aside."""
    turns = numbered_turns(dialogues)
    sets = UnionFind(len(turns))
    for left, right in _sharing_pairs(dialogues, labelled=labelled, quoted=quoted):
        sets.union(left, right)
    return sum(len(group) for group in sets.groups() if len({turns[position] for position in group}) > 1)


def _sharing_pairs(dialogues: Sequence[Dialogue], *, labelled: bool, quoted: bool) -> Iterator[tuple[int, int]]:
    yield from overlapping_pairs(dialogues)
    if quoted:
        yield from wholly_quoting_pairs(dialogues) if labelled else quoting_pairs(dialogues)


def numbered_turns(dialogues: Sequence[Dialogue]) -> list[Turns]:
    """Return the turns of every dialogue as numbers; equal numbers stand for equal roles and, but for case and punctuation, equal texts."""
    numbers: dict[tuple[str, str], int] = {}
    return [
        tuple(numbers.setdefault((turn.role, normalize(turn.text)), len(numbers)) for turn in dialogue.turns if turn.role != "system")
        for dialogue in dialogues
    ]


def _telling_answers(dialogues: Sequence[Dialogue], turns: Sequence[Turns]) -> frozenset[int]:
    """Return the answers that tell which conversation they are from: long enough, and given to one question only."""
    questions: dict[int, set[int]] = {}
    for dialogue, own in zip(dialogues, turns, strict=True):
        spoken = [turn for turn in dialogue.turns if turn.role != "system"]
        for number, (turn, name) in enumerate(zip(spoken, own, strict=True)):
            if turn.role == "assistant":
                asked = questions.setdefault(name, set())
                if number and spoken[number - 1].role == "user":
                    asked.add(own[number - 1])
    once = {name for name, asked in questions.items() if len(asked) <= 1}
    text_by_answer = {
        name: turn.text
        for dialogue, own in zip(dialogues, turns, strict=True)
        for turn, name in zip((turn for turn in dialogue.turns if turn.role != "system"), own, strict=True)
        if name in once
    }
    return frozenset(name for name, text in text_by_answer.items() if n_words(normalize(text).split()) >= TELLING)


def _system(dialogue: Dialogue) -> str | None:
    return next((turn.text for turn in dialogue.turns if turn.role == "system"), None)
