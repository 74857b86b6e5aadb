"""Rows of different lengths one behind another, so that products with frozen weights and element-wise functions see little padding.

legend   b row, n rows of a run, t token of a row, N tokens of all rows, M tokens that predict something wanted, e width of a head

Neighbours of equal length are a run: what is computed row by row (a row's own factors, attention) is computed for a run at once, on a
view [n, t, ...] of its part of [N, ...].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Padding:
    """Rows are padded to a multiple of so many tokens; with `alike`, all rows of a batch to the longest of them, as one run."""

    multiple: int
    alike: bool = False

    def __call__(self, lengths: Sequence[int]) -> list[int]:
        """Return how long each of these rows is once it is padded."""
        padded = [self.multiple * math.ceil(length / self.multiple) for length in lengths]
        return [max(padded)] * len(padded) if self.alike else padded


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring rows of one length: which rows they are, and which of the N tokens are theirs."""

    rows: slice
    tokens: slice
    length: int

    def __hash__(self) -> int:
        # Slices have a hash from Python 3.12 on.
        return hash((self.rows.start, self.rows.stop, self.tokens.start, self.length))

    def of(self, x: Tensor) -> Tensor:
        """Return this run's part of [N, ...] as a view [n, t, ...]."""
        return x[self.tokens].view(-1, self.length, *x.shape[1:])


@dataclass(frozen=True, slots=True)
class Packing:
    """The runs of a batch, the row and the place within it of each of its N tokens, and which of them are more than padding."""

    runs: tuple[Run, ...]
    row: Int[Tensor, " N"]
    place: Int[Tensor, " N"]
    real: Int[Tensor, " n"]

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(run.length for run in self.runs)


def pack(lengths: Int[Tensor, " b"], padding: Padding) -> Packing:
    """Return where rows of these lengths are."""
    padded = padding(lengths.tolist())
    width = torch.tensor(padded, device=lengths.device)
    row = torch.repeat_interleave(torch.arange(len(padded), device=lengths.device), width, output_size=sum(padded))
    place = torch.arange(sum(padded), device=lengths.device) - (width.cumsum(0) - width)[row]
    return Packing(_runs(padded), row, place, (place < lengths[row]).nonzero()[:, 0])


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch packed: all its tokens, then those that predict."""

    ids: Int[Tensor, " N"]
    tokens: Packing
    predicting: Packing
    chosen: Int[Tensor, " M"]
    """Where among all tokens those that predict are."""


def pack_batch(ids: Int[Tensor, "b t"], predicts: Bool[Tensor, "b t"], padding: Padding) -> Batch:
    """Pack right-padded rows without what follows their last prediction; every row must predict something."""
    numbers = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    tokens = pack((predicts * numbers).amax(1), padding)
    at = tokens.place.clamp(max=ids.shape[1] - 1)
    all_predicting = tokens.real[predicts[tokens.row, at][tokens.real]]
    counts = predicts.sum(1)
    predicting = pack(counts, padding)
    # Padding stands for the row's first token that predicts; nobody reads what it predicts, so it has no gradient either.
    place = torch.where(predicting.place < counts[predicting.row], predicting.place, 0)
    chosen = all_predicting[(counts.cumsum(0) - counts)[predicting.row] + place]
    return Batch(ids[tokens.row, at], tokens, predicting, chosen)


def that_fit(lengths: Sequence[int], n_tokens: int, padding: Padding) -> int:
    """Return how many of the rows, longest first, fit into so many tokens once they are padded; at least one."""
    padded = padding(lengths)
    return max(1, sum(n <= n_tokens for n in accumulate(padded)))


def whole(n_rows: int, length: int) -> tuple[Run, ...]:
    """Return the runs of rows that are all padded to one length: one."""
    return (Run(slice(0, n_rows), slice(0, n_rows * length), length),)


def _runs(lengths: Sequence[int]) -> tuple[Run, ...]:
    runs, row, token = [], 0, 0
    for length, alike in groupby(lengths):
        n = len(list(alike))
        runs.append(Run(slice(row, row + n), slice(token, token + n * length), length))
        row, token = row + n, token + n * length
    return tuple(runs)
