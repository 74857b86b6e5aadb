"""Dialogues that repeat turns of one another: rows of one conversation, each with the history so far.

Many exports write a row per exchange and put everything said before into its `messages`. Such rows are one conversation: split apart,
the answer that is scored in one of them stands in the history of another that is trained on.
"""

from collections.abc import Iterator, Sequence

from clusterlora.data.duplicates import UnionFind, duplicate_groups, normalize
from clusterlora.values import Dialogue

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

    One of the two is contained in the other, or begins with the turns with which the other ends, an answer among them at least.
    """
    turns = numbered_turns(dialogues)
    answers = [[turn.role == "assistant" for turn in dialogue.turns if turn.role != "system"] for dialogue in dialogues]
    occurrences: dict[int, list[tuple[int, int]]] = {}
    for position, own in enumerate(turns):
        for offset, turn in enumerate(own):
            occurrences.setdefault(turn, []).append((position, offset))
    for position, own in enumerate(turns):
        if not own:
            continue
        for other, offset in occurrences[own[0]]:
            n_shared = min(len(own), len(turns[other]) - offset)
            shared = own[:n_shared] == turns[other][offset : offset + n_shared]
            if other != position and shared and any(answers[position][1:n_shared]):
                yield position, other


def related_groups(dialogues: Sequence[Dialogue], *, labelled: bool = False) -> tuple[tuple[int, ...], ...]:
    """Return groups of positions that belong on one side of a split: (near) duplicates, and dialogues that share turns."""
    sets = UnionFind(len(dialogues))
    for group in duplicate_groups(dialogues, labelled=labelled):
        for position in group:
            sets.union(group[0], position)
    for left, right in overlapping_pairs(dialogues):
        sets.union(left, right)
    return sets.groups()


def numbered_turns(dialogues: Sequence[Dialogue]) -> list[Turns]:
    """Return the turns of every dialogue as numbers; equal numbers stand for equal roles and, but for case and punctuation, equal texts."""
    numbers: dict[tuple[str, str], int] = {}
    return [
        tuple(numbers.setdefault((turn.role, normalize(turn.text)), len(numbers)) for turn in dialogue.turns if turn.role != "system")
        for dialogue in dialogues
    ]


def _system(dialogue: Dialogue) -> str | None:
    return next((turn.text for turn in dialogue.turns if turn.role == "system"), None)
