"""Sequence packing: rows of different lengths are concatenated, so that frozen weights and element-wise functions see little padding.

legend   b row, n rows of a segment, t token of a row, N tokens of all rows, M predicting tokens (a response token comes next)

Neighbouring rows of equal padded length form a segment. Row-wise computations (a row's own factors, attention) run once per segment, on a
view [n, t, ...] of its part of [N, ...]. On a GPU, kernels that know where each row begins need no padding of rows at all.
Source: Krell et al. 2021, efficient sequence packing (arXiv 2107.02027).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from jaxtyping import Int
from torch import Tensor

from clusterlora.engine.cuda_graphs import bucket_size
from clusterlora.engine.ragged import RaggedRows

_FILL_TO = 128
"""A ragged batch has a multiple of this many tokens."""


@dataclass(frozen=True, slots=True)
class Padding:
    """Pads every row to a multiple of `multiple` tokens; `uniform` pads all rows of a batch to its longest, as one segment.

    `ragged` pads no row, and the batch to one of few numbers of tokens; there are no segments.
    """

    multiple: int
    uniform: bool = False
    ragged: bool = False

    def __call__(self, lengths: Sequence[int]) -> list[int]:
        """Return the padded lengths."""
        padded = [self.multiple * math.ceil(length / self.multiple) for length in lengths]
        return [max(padded)] * len(padded) if self.uniform else padded


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring rows of one length: their row numbers and the range of their tokens among the N."""

    rows: slice
    tokens: slice
    length: int

    def __hash__(self) -> int:
        # Slices are hashable only from Python 3.12 on.
        return hash((self.rows.start, self.rows.stop, self.tokens.start, self.length))

    def view(self, x: Tensor) -> Tensor:
        """Return this segment's part of [N, ...] as a view [n, t, ...]."""
        return x[self.tokens].view(-1, self.length, *x.shape[1:])


@dataclass(frozen=True, slots=True)
class Packing:
    """The layout of packed rows: their segments, the row and the position of each of the N tokens, the indices of those not padding."""

    segments: tuple[Segment, ...]
    widths: Int[Tensor, " b"]
    """Tokens of each row, its padding included."""
    row: Int[Tensor, " N"]
    position: Int[Tensor, " N"]
    real: Int[Tensor, " n"]

    @property
    def longest(self) -> int:
        """Tokens of the longest row, padding included."""
        return int(self.widths.max())


def pack(lengths: Int[Tensor, " b"], padding: Padding) -> Packing:
    """Return the layout of rows of these lengths."""
    padded = padding(lengths.tolist())
    n = sum(padded)
    width = torch.tensor(padded, device=lengths.device)
    row = torch.repeat_interleave(torch.arange(len(padded), device=lengths.device), width, output_size=n)
    position = torch.arange(n, device=lengths.device) - (width.cumsum(0) - width)[row]
    real = (position < lengths[row]).nonzero()[:, 0]
    if not padding.ragged:
        return Packing(_segments(padded), width, row, position, real)
    # What fills the batch counts as tokens of the first row, no row longer than the longest.
    n_more = _fill_up(n) - n
    return Packing((), width, torch.cat([row, row.new_zeros(n_more)]), torch.cat([position, torch.arange(n_more) % max(padded)]), real)


def _fill_up(n_tokens: int) -> int:
    """Return one of few numbers of tokens that is at least `n_tokens`, at most a quarter larger unless that is small."""
    return _FILL_TO * math.ceil(bucket_size(n_tokens) / _FILL_TO)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A packed batch: the layout of all its tokens, and that of the predicting ones alone."""

    ids: Int[Tensor, " N"]
    tokens: Packing
    predicting: Packing
    predicting_index: Int[Tensor, " M"]
    """Indices of the predicting tokens among all tokens."""


def pack_batch(rows: RaggedRows, padding: Padding) -> PackedBatch:
    """Return rows packed, each cut after its last predicting token; every row must have one."""
    starts, row_of_prediction = rows.starts, rows.row[rows.predicts]
    counts = torch.bincount(row_of_prediction, minlength=len(rows))
    last_predictions = rows.predicts.nonzero()[counts.cumsum(0) - 1, 0]
    tokens = pack(last_predictions - starts + 1, padding)
    # Padding repeats the row's last token.
    index = starts[tokens.row] + torch.minimum(tokens.position, rows.lengths[tokens.row] - 1)
    all_predicting = tokens.real[rows.predicts[index[tokens.real]]]
    predicting = pack(counts, padding)
    # Padding repeats the row's first predicting token; its prediction is not used, so its gradient is zero.
    position = torch.where(predicting.position < counts[predicting.row], predicting.position, 0)
    predicting_index = all_predicting[(counts.cumsum(0) - counts)[predicting.row] + position]
    return PackedBatch(rows.ids[index], tokens, predicting, predicting_index)


def n_rows_that_fit(lengths: Sequence[int], n_tokens: int, padding: Padding) -> int:
    """Return how many of the rows, longest first, fit into `n_tokens` tokens when padded; at least one."""
    padded = padding(lengths)
    return max(1, sum(total <= n_tokens for total in accumulate(padded)))


def single_segment(n_rows: int, length: int) -> tuple[Segment, ...]:
    """Return the segments of rows that are all padded to one length."""
    return (Segment(slice(0, n_rows), slice(0, n_rows * length), length),)


def _segments(lengths: Sequence[int]) -> tuple[Segment, ...]:
    segments, row, token = [], 0, 0
    for length, equal in groupby(lengths):
        n = len(list(equal))
        segments.append(Segment(slice(row, row + n), slice(token, token + n * length), length))
        row, token = row + n, token + n * length
    return tuple(segments)
