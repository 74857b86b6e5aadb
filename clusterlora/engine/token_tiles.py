"""The tokens of a packed batch, cut into tiles of one slot, as the kernels of `engine.kernels.low_rank` take them.

legend   b row, N tokens of all rows
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from clusterlora.engine.cuda_graphs import bucket_size
from clusterlora.engine.packing import Packing

_LOW, _HIGH = 16, 64
"""Tokens of a tile: few where a batch would otherwise occupy only part of a GPU."""
_MOST_TOKENS_IN_LOW_TILES = 4096


@dataclass(frozen=True, slots=True)
class TokenTiles:
    """Where the tokens of each row and the rows of each slot are; how many numbers there are depends on few sizes of a batch."""

    tiles: Int[Tensor, "tile 5"]
    """Trained slot, frozen slot, first token, the one after the last, and the row; tiles without tokens fill up."""
    spans: Int[Tensor, "span 4"]
    """Trained slot, frozen slot, first row, and the one after the last, of all rows of a slot."""
    starts: Int[Tensor, " row"]
    """The first token of each row, then the number of all tokens of rows."""
    height: int
    """The most tokens of a tile."""


def token_tiles(packing: Packing, slots: Sequence[int], frozen_slots: Sequence[int]) -> TokenTiles:
    """Return the tiles of packed rows; rows beyond those that have slots belong to no tile.

    Args:
        slots: of each row, equal ones together.
    """
    n_tokens, n_rows = len(packing.row), len(slots)
    of_row = np.stack([slots, frozen_slots], axis=1)
    ends = packing.widths.numpy()[:n_rows].cumsum()
    starts = np.append(0, ends)
    last = np.flatnonzero(np.append((of_row[1:] != of_row[:-1]).any(axis=1), True))
    spans = np.column_stack([of_row[last], np.append(0, last[:-1] + 1), last + 1])
    assert len(np.unique(spans[:, 0])) == len(spans), "the rows of a slot are not together"
    height = _LOW if n_tokens <= _MOST_TOKENS_IN_LOW_TILES else _HIGH
    n_of_row = -(-packing.widths.numpy()[:n_rows] // height)
    row = np.repeat(np.arange(n_rows), n_of_row)
    first = starts[row] + (np.arange(len(row)) - (n_of_row.cumsum() - n_of_row)[row]) * height
    tiles = np.column_stack([of_row[row], first, np.minimum(first + height, ends[row]), row])
    n_rows_at_most = bucket_size(n_rows)
    return TokenTiles(
        _filled(tiles, n_rows_at_most + -(-n_tokens // height)),
        _filled(spans, bucket_size(len(spans))),
        torch.from_numpy(np.append(starts, np.full(n_rows_at_most - n_rows, starts[-1])).astype(np.int32)),
        height,
    )


def _filled(numbers: "np.ndarray", n: int) -> Int[Tensor, "n _columns"]:
    filled = np.zeros((n, numbers.shape[1]), np.int32)
    filled[: len(numbers)] = numbers
    return torch.from_numpy(filled)
