"""Drawing tokens instead of taking the likeliest: temperature and nucleus sampling with a seed per answer.

legend   V vocabulary
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer's tokens are drawn. `temperature` is above 0; `top_p` is the probability of the tokens to draw from."""

    temperature: float
    top_p: float
    seed: int


class Sampler:
    """Draws the tokens of one answer; its generator is its own, so that other answers of the batch do not change it."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def draw(self, logits: Float[Tensor, " V"]) -> int:
        """Return a token of the nucleus: the likeliest tokens that together have a probability of at least `top_p`.

        Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration.
        """
        # Sorted and summed in float64 on the CPU, so that every device draws the same token from the same logits.
        centred = logits.double().cpu()
        centred = centred - centred.max()
        probabilities = (centred / self._sampling.temperature).softmax(-1)
        sorted_probabilities, tokens = probabilities.sort(descending=True, stable=True)
        before = sorted_probabilities.cumsum(-1) - sorted_probabilities
        is_drawn = before < self._sampling.top_p
        # The likeliest token is always drawn from, at top_p 0 alone.
        is_drawn[0] = True
        nucleus = sorted_probabilities * is_drawn
        return int(tokens[torch.multinomial(nucleus, 1, generator=self._generator)])


def sampler_of(sampling: Sampling | None) -> Sampler | None:
    """Return the sampler of an answer; None for a greedy one."""
    return None if sampling is None else Sampler(sampling)
