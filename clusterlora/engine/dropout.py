"""Dropout whose masks depend on the adapter alone: its seed, its step and the dialogue's index in the adapter's batch.

A mask drawn for the whole batch would make an adapter depend on its neighbours. So a long tape of mask values is drawn once, and each
dialogue's mask is read at an offset hashed from its key. All tokens of a dialogue share one mask of each layer's input features, which is
folded into A as the dialogue's products read it: (x * m) A^T = x (A * m)^T costs nothing per token.
Source: Gal & Ghahramani 2016, one mask for all steps of a sequence (arXiv 1512.05287).
"""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import torch
from jaxtyping import Float
from torch import Tensor

_TAPE_LENGTH = 1 << 20
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


MaskKey = tuple[int, int, int]
"""The adapter's seed, its step, and the dialogue's index in its batch of that step."""


class Tape:
    """Mask values: 0 with the given probability, else 1 / (1 - probability), so that expectations are preserved."""

    def __init__(self, probability: float, *, longest: int, device: torch.device, dtype: torch.dtype) -> None:
        """Draw the tape; `longest` is the longest mask."""
        generator = torch.Generator().manual_seed(0)
        keep = torch.rand(_TAPE_LENGTH + longest, generator=generator) >= probability
        self._values = (keep.to(dtype) / (1 - probability)).to(device)

    def read(self, keys: Sequence[MaskKey], n: int) -> Float[Tensor, "key n"]:
        """Return the masks of length n with these keys."""
        starts = torch.tensor([_hash(*key) % _TAPE_LENGTH for key in keys], device=self._values.device)
        # All masks there are, as overlapping rows, of which only those that are wanted are copied.
        return self._values.as_strided((_TAPE_LENGTH, n), (1, 1)).index_select(0, starts)


class Dropout:
    """Masks over `n_features` input features; has one tape per dropout probability."""

    def __init__(self, n_features: int, *, device: torch.device, dtype: torch.dtype) -> None:
        self._n = n_features
        self._like = torch.zeros((), device=device, dtype=dtype)
        self._tapes: dict[float, Tape] = {}

    def masks(self, probabilities: Sequence[float], keys: Sequence[MaskKey]) -> Float[Tensor, "b feature"] | None:
        """Return each row's mask; None if no row has dropout."""
        if not any(probabilities):
            return None
        by_probability = groupby(zip(probabilities, keys, strict=True), key=itemgetter(0))
        masks = [self._masks(probability, [key for _, key in rows]) for probability, rows in by_probability]
        return masks[0] if len(masks) == 1 else torch.cat(masks)

    def _masks(self, probability: float, keys: Sequence[MaskKey]) -> Float[Tensor, "key feature"]:
        if probability == 0:
            return torch.ones_like(self._like).expand(len(keys), self._n)
        if probability not in self._tapes:
            self._tapes[probability] = Tape(probability, longest=self._n, device=self._like.device, dtype=self._like.dtype)
        return self._tapes[probability].read(keys, self._n)
