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
    """Where the tokens of each slot are. The numbers are on the decoder's device; how many there are depends on few sizes of a batch."""

    tiles: Int[Tensor, "tile 4"]
    """Trained slot, frozen slot, first token, and the one after the last; tiles without tokens fill up."""
    spans: Int[Tensor, "span 4"]
    """The same for all tokens of a slot."""
    row: Int[Tensor, " N"]
    """The row of each token."""
    height: int
    """The most tokens of a tile."""


def token_tiles(packing: Packing, slots: Sequence[int], frozen_slots: Sequence[int], device: torch.device) -> TokenTiles:
    """Return the tiles of packed rows; rows beyond those that have slots belong to no tile.

    Args:
        slots: of each row, equal ones together.
    """
    n_tokens, of_row = len(packing.row), np.stack([slots, frozen_slots], axis=1)
    ends = packing.widths.numpy()[: len(of_row)].cumsum()
    last = np.flatnonzero(np.append((of_row[1:] != of_row[:-1]).any(axis=1), True))
    first_token = np.append(0, ends[last[:-1]])
    spans = np.column_stack([of_row[last], first_token, ends[last]])
    assert len(np.unique(spans[:, 0])) == len(spans), "the rows of a slot are not together"
    height = _LOW if n_tokens <= _MOST_TOKENS_IN_LOW_TILES else _HIGH
    n_of_span = -(-(spans[:, 3] - spans[:, 2]) // height)
    tiles = np.repeat(spans, n_of_span, axis=0)
    within = np.arange(len(tiles)) - np.repeat(n_of_span.cumsum() - n_of_span, n_of_span)
    tiles[:, 2] += within * height
    tiles[:, 3] = np.minimum(tiles[:, 3], tiles[:, 2] + height)
    n_spans = bucket_size(len(spans))
    return TokenTiles(
        _filled(tiles, n_spans + -(-n_tokens // height), device), _filled(spans, n_spans, device), packing.row.int().to(device), height
    )


def _filled(numbers: "np.ndarray", n: int, device: torch.device) -> Int[Tensor, "n 4"]:
    filled = np.zeros((n, 4), np.int32)
    filled[: len(numbers)] = numbers
    return torch.from_numpy(filled).to(device)
