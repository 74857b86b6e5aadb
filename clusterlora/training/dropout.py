"""Dropout whose mask depends on the adapter alone: its seed, its step and the dialogue's place in the batch.

A mask drawn for the whole batch would make an adapter depend on its neighbours. So a long tape of masks is drawn once, and every
dialogue reads it from an offset hashed from what its mask may depend on. All tokens of a dialogue share one mask of each layer's input
features, so that it can be folded into the dialogue's own factor A: (x * m) A^T = x (A * m)^T costs nothing per token.
Source: Gal & Ghahramani 2016, one mask for all steps of a sequence (arXiv 1512.05287).
"""

from collections.abc import Sequence

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


class Tape:
    """Masks to read from: 0 with the given probability, else 1 / (1 - probability), so that means are kept."""

    def __init__(self, probability: float, *, longest: int, device: torch.device, dtype: torch.dtype) -> None:
        """Draw the tape; no read is longer than `longest`."""
        generator = torch.Generator().manual_seed(0)
        keep = torch.rand(_TAPE_LENGTH + longest, generator=generator) >= probability
        self._values = (keep.to(dtype) / (1 - probability)).to(device)

    def read(self, identity: tuple[int, int, int], n: int) -> Float[Tensor, " n"]:
        """Return the n values of one dialogue; its identity is (seed of the adapter, its step, the dialogue's place in the step)."""
        start = _hash(*identity) % _TAPE_LENGTH
        return self._values[start : start + n]


class Dropout:
    """The tapes of all probabilities in use, for masks over `n_features` input features."""

    def __init__(self, n_features: int, *, device: torch.device, dtype: torch.dtype) -> None:
        self._n = n_features
        self._like = torch.ones(n_features, device=device, dtype=dtype)
        self._tapes: dict[float, Tape] = {}

    def masks(self, probabilities: Sequence[float], identities: Sequence[tuple[int, int, int]]) -> Float[Tensor, "b feature"] | None:
        """Return each row's mask; None when no row has any dropout."""
        if not any(probabilities):
            return None
        return torch.stack([self._mask(p, who) for p, who in zip(probabilities, identities, strict=True)])

    def _mask(self, probability: float, identity: tuple[int, int, int]) -> Tensor:
        if probability == 0:
            return self._like
        if probability not in self._tapes:
            like = self._like
            self._tapes[probability] = Tape(probability, longest=self._n, device=like.device, dtype=like.dtype)
        return self._tapes[probability].read(identity, self._n)
