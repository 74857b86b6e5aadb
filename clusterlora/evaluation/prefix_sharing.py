"""What a pass reads: dialogues, each a row, and beginnings that several of them have in common, each read once.

All prompts of a study begin with its system text, those of one persona perhaps with what is said about the persona. Under one slot, the
keys and values of such a beginning are the same for every dialogue: it is a row of its own, and the dialogues' rows are what follows.
Source: Zheng et al. 2024, prefix sharing across calls, SGLang (arXiv 2312.07104).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

from clusterlora.evaluation.generate import Question, in_one_pass

COST_OF_SHARING = 32
"""In tokens, what it costs a dialogue to carry on another row: attention across rows is slower, and equal rows are fewer. On two cores
beginnings of 23 tokens, shared by thousands, gain nothing; those of 54 and of 71 tokens, shared by six, do."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A dialogue under one slot. `together` are the questions read off it; its first `begin` tokens are read in a row of their own."""

    ids: tuple[int, ...]
    slot: int
    together: tuple[int, ...]
    begin: int = 0

    @property
    def n_own(self) -> int:
        """Tokens of its own row."""
        return len(self.ids) - self.begin

    @property
    def beginning(self) -> tuple[int, tuple[int, ...]]:
        """The slot and the tokens that are read for several."""
        return self.slot, self.ids[: self.begin]


def streams(questions: Sequence[Question], batch_size: int, *, share: bool) -> list[list[Reading]]:
    """Return what is to be read, longest first: of a slot that fills batches alone by itself, of all others mixed.

    Rows of one slot share its factors; rows of many read one copy each. Dialogues with a common beginning stay together.

    Args:
        share: read beginnings once where that saves time.
    """
    read = [_reading(questions, together) for together in in_one_pass(questions)]
    by_slot = [[*of_slot] for _, of_slot in groupby(read, key=lambda reading: reading.slot)]
    alone = [readings for readings in by_slot if len(readings) >= batch_size]
    mixed = [reading for readings in by_slot if len(readings) < batch_size for reading in readings]
    found = [stream for stream in (*alone, mixed) if stream]
    return [_longest_first(_in_groups(questions, stream) if share else [[reading] for reading in stream]) for stream in found]


def _reading(questions: Sequence[Question], together: Sequence[int]) -> Reading:
    last = questions[together[-1]]
    return Reading(last.prompt + last.reference, last.slot, tuple(together))


def _in_groups(questions: Sequence[Question], readings: Sequence[Reading]) -> list[list[Reading]]:
    """Return readings, sorted by slot and tokens, in groups that have a beginning in common; it ends before anything is predicted.

    What neighbours have in common makes their readings the leaves of a tree. From the leaves up, a branch becomes one group where its
    own beginning, read once, saves at least as much as the longer ones of its parts.
    """
    leaves = [_Branch(0, [[reading]]) for reading in readings]
    pending, open_branches = leaves[0], list[_Branch]()
    for (before, now), leaf in zip(pairwise(readings), leaves[1:], strict=True):
        depth = _in_common(questions, before, now)
        while open_branches and open_branches[-1].depth > depth:
            pending = open_branches.pop().closed(pending)
        if not open_branches or open_branches[-1].depth < depth:
            open_branches.append(_Branch(depth))
        open_branches[-1].add(pending)
        pending = leaf
    for branch in reversed(open_branches):
        pending = branch.closed(pending)
    return pending.groups


@dataclass(slots=True)
class _Branch:
    """Neighbours that have `depth` tokens in common, as they are best grouped, and how many tokens' time that saves."""

    depth: int
    groups: list[list[Reading]] = field(default_factory=list[list[Reading]])
    saved: int = 0

    def add(self, part: "_Branch") -> None:
        self.groups += part.groups
        self.saved += part.saved

    def closed(self, last: "_Branch") -> "_Branch":
        """Return the branch with its last part: as one group if that saves more."""
        self.add(last)
        members = [reading for group in self.groups for reading in group]
        saved = self.depth * (len(members) - 1) - COST_OF_SHARING * len(members)
        if saved > 0 and saved >= self.saved:
            self.groups, self.saved = [[replace(reading, begin=self.depth) for reading in members]], saved
        return self


def _longest_first(groups: Sequence[Sequence[Reading]]) -> list[Reading]:
    ordered = [sorted(group, key=lambda reading: -len(reading.ids)) for group in groups]
    return [reading for group in sorted(ordered, key=lambda group: -len(group[0].ids)) for reading in group]


def _in_common(questions: Sequence[Question], *both: Reading) -> int:
    """Return with how many of the same tokens both begin, before either predicts."""
    if both[0].slot != both[1].slot:
        return 0
    one, other = (reading.ids[: len(questions[reading.together[0]].prompt) - 1] for reading in both)
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
