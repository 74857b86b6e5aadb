"""What a prefill pass computes: dialogues, one per row, and prefixes that several of them share, computed once.

All prompts of a study begin with its system text, those of one persona possibly with the persona's description. Under one slot such a
prefix has the same keys and values in every dialogue, so it becomes a row of its own and the dialogues' rows start after it.
Source: Zheng et al. 2024, prefix sharing across calls, SGLang (arXiv 2312.07104).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

from clusterlora.engine.generation import Question, in_one_pass

SHARING_COST = 32
"""Cost, in tokens, of attending to another row's prefix: that attention is slower, and equal row lengths become rarer. Measured on two
cores: sharing prefixes of 23 tokens among thousands of dialogues gains nothing, sharing 54 or 71 tokens among six does."""


PrefixKey = tuple[int, tuple[int, ...]]
"""The slot and the tokens of a shared prefix."""


@dataclass(frozen=True, slots=True)
class PrefillSequence:
    """A dialogue under one slot; `turns` are the numbers of the questions it answers.

    Its first `prefix_length` tokens are computed in a row of their own, shared with other dialogues.
    """

    ids: tuple[int, ...]
    slot: int
    turns: tuple[int, ...]
    prefix_length: int = 0

    @property
    def n_own_tokens(self) -> int:
        """Tokens after the shared prefix."""
        return len(self.ids) - self.prefix_length

    @property
    def prefix(self) -> PrefixKey:
        """The prefix that the sequence shares."""
        return self.slot, self.ids[: self.prefix_length]


def prefill_streams(questions: Sequence[Question], batch_size: int, *, share: bool) -> list[list[PrefillSequence]]:
    """Return the sequences to prefill, longest first: one stream per slot that fills batches by itself, one of all other slots.

    Rows of one slot share its factors, rows of several need a copy each. Dialogues that share a prefix stay together.

    Args:
        share: compute common prefixes once where that saves time.
    """
    sequences = [_prefill_sequence(questions, turns) for turns in in_one_pass(questions)]
    by_slot = [[*same_slot] for _, same_slot in groupby(sequences, key=lambda sequence: sequence.slot)]
    single = [sequences for sequences in by_slot if len(sequences) >= batch_size]
    mixed = [sequence for sequences in by_slot if len(sequences) < batch_size for sequence in sequences]
    streams = [stream for stream in (*single, mixed) if stream]
    return [_longest_first(_group_by_prefix(questions, stream) if share else [[sequence] for sequence in stream]) for stream in streams]


def _prefill_sequence(questions: Sequence[Question], turns: Sequence[int]) -> PrefillSequence:
    last = questions[turns[-1]]
    return PrefillSequence(last.prompt + last.reference, last.slot, tuple(turns))


def _group_by_prefix(questions: Sequence[Question], sequences: Sequence[PrefillSequence]) -> list[list[PrefillSequence]]:
    """Return sequences, sorted by slot and tokens, in groups that share a prefix, which ends before the first predicting token.

    The common prefixes of neighbours form a tree with the sequences as leaves. From the leaves up, a node becomes one group if sharing its
    own prefix saves at least as much as sharing the longer prefixes below it.
    """
    leaves = [_PrefixNode(0, [[sequence]]) for sequence in sequences]
    pending, open_nodes = leaves[0], list[_PrefixNode]()
    for (before, after), leaf in zip(pairwise(sequences), leaves[1:], strict=True):
        depth = _common_prefix_length(questions, before, after)
        while open_nodes and open_nodes[-1].depth > depth:
            pending = open_nodes.pop().close(pending)
        if not open_nodes or open_nodes[-1].depth < depth:
            open_nodes.append(_PrefixNode(depth))
        open_nodes[-1].add(pending)
        pending = leaf
    for node in reversed(open_nodes):
        pending = node.close(pending)
    return pending.groups


@dataclass(slots=True)
class _PrefixNode:
    """Neighbours with a common prefix of `depth` tokens, in the best groups, and the tokens that these save."""

    depth: int
    groups: list[list[PrefillSequence]] = field(default_factory=list[list[PrefillSequence]])
    saved: int = 0

    def add(self, child: "_PrefixNode") -> None:
        self.groups += child.groups
        self.saved += child.saved

    def close(self, last_child: "_PrefixNode") -> "_PrefixNode":
        """Add the last child and merge the groups into one if that saves more; return the node."""
        self.add(last_child)
        members = [sequence for group in self.groups for sequence in group]
        saved = self.depth * (len(members) - 1) - SHARING_COST * len(members)
        if saved > 0 and saved >= self.saved:
            self.groups, self.saved = [[replace(sequence, prefix_length=self.depth) for sequence in members]], saved
        return self


def _longest_first(groups: Sequence[Sequence[PrefillSequence]]) -> list[PrefillSequence]:
    """Return the sequences with the groups, and within them the members, in descending order of length."""
    ordered = [sorted(group, key=lambda sequence: -len(sequence.ids)) for group in groups]
    return [sequence for group in sorted(ordered, key=lambda group: -len(group[0].ids)) for sequence in group]


def _common_prefix_length(questions: Sequence[Question], *pair: PrefillSequence) -> int:
    """Return the number of leading tokens that two sequences share before either has a predicting token; 0 under different slots."""
    if pair[0].slot != pair[1].slot:
        return 0
    first, second = (sequence.ids[: len(questions[sequence.turns[0]].prompt) - 1] for sequence in pair)
    return next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
