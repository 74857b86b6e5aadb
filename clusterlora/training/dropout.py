"""Dropout whose mask depends on the adapter alone: its seed, its step, the dialogue's place in the batch and the layer.

Drawing a fresh mask for every row would cost as much as the matrix products of a small model, and a mask drawn for the whole batch
would make an adapter depend on its neighbours. So a long tape of masks is drawn once, and every row reads it from an offset hashed
from what the mask may depend on.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_TAPE_LENGTH = 1 << 22
_OVERLAP = 1 << 20
_MIX = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def _hash(*numbers: int) -> int:
    """Return 64 well-mixed bits (splitmix64 over the numbers; Steele, Lea & Flood 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + _MIX) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state


class Tape:
    """Masks to read from: 0 with the given probability, else 1 / (1 - probability), so that means are kept."""

    def __init__(self, probability: float, *, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        keep = torch.rand(_TAPE_LENGTH, generator=generator) >= probability
        values = (keep.to(dtype) / (1 - probability)).to(device)
        # The tape goes on from its beginning: most reads that cross its end find the continuation in place.
        self._values = torch.cat([values, values[:_OVERLAP]])

    def read(self, start: int, n: int) -> Float[Tensor, " n"]:
        """Return n values from a place on the tape."""
        if start + n <= len(self._values):
            return self._values[start : start + n]
        turns = -(-(start + n) // _TAPE_LENGTH)
        return self._values[:_TAPE_LENGTH].repeat(turns)[start : start + n]


class DropoutTape:
    """The masks of one batch: row b reads the tape of its adapter's probability at an offset of its own."""

    def __init__(self, tapes: Sequence[Tape | None], identities: Sequence[tuple[int, int, int]]) -> None:
        """Args:
        tapes: per row, the tape of its dropout probability; None for no dropout.
        identities: per row, (seed of the adapter, its step, the dialogue's place in the step).
        """
        self._tapes = tapes
        self._identities = identities

    def mask(self, layer: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Return the mask of a layer's input. Token t of a row has the same mask however far the row is padded."""
        n = x.shape[1] * x.shape[2]
        rows = []
        for tape, identity in zip(self._tapes, self._identities, strict=True):
            if tape is None:
                rows.append(x.new_ones(n))
            else:
                start = _hash(*identity, layer) % _TAPE_LENGTH
                rows.append(tape.read(start, n))
        return torch.stack(rows).view_as(x)
