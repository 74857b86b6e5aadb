"""AdamW on the rows of a matrix: every slot clipped, scheduled and stepped by itself, all of them in a few kernels.

A GPU spends longer on starting a step's kernels for one slot than on running them, and a pass steps every slot.
Source: Loshchilov & Hutter 2019, decoupled weight decay (arXiv 1711.05101).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adamw import adamw

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
_CLIP_EPS = 1e-6
"""Beside the norm in the denominator, as `torch.nn.utils.clip_grad_norm_` has it."""


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """What one slot's step is taken with."""

    learning_rate: float
    weight_decay: float
    max_grad_norm: float


class SlotAdamW:
    """The moments of K slots, and the steps each has taken; parameters and gradients are rows of two matrices [K, n]."""

    def __init__(self, parameters: Float[Tensor, "k n"], gradients: Float[Tensor, "k n"]) -> None:
        self._gradients = gradients
        self.first = torch.zeros_like(parameters)
        self.second = torch.zeros_like(parameters)
        self._rows: list[Sequence[Tensor]] = [matrix.unbind(0) for matrix in (parameters, self.first, self.second)]
        self._taken = [torch.zeros((), device=parameters.device) for _ in parameters]

    def begin(self, slot: int, *, n_taken: int = 0) -> None:
        """Forget a slot's moments; its next step is the one after `n_taken`."""
        self.first[slot].zero_()
        self.second[slot].zero_()
        self._taken[slot].fill_(n_taken)

    def step(self, steps: Mapping[int, Step]) -> None:
        """Take a step on each of these slots, with its gradient clipped to its norm; the others cost nothing and stay as they are."""
        if not steps:
            return
        clipped = self._gradients[list(steps)]
        most = clipped.new_tensor([step.max_grad_norm for step in steps.values()])
        clipped.mul_((most / (torch.linalg.vector_norm(clipped, dim=1) + _CLIP_EPS)).clamp_(max=1)[:, None])
        gradient_of = dict(zip(steps, clipped.unbind(0), strict=True))
        for step, alike in groupby(sorted(steps, key=steps.__getitem__), key=steps.__getitem__):
            slots = list(alike)
            parameters, first, second = ([rows[slot] for slot in slots] for rows in self._rows)
            adamw(
                parameters,
                [gradient_of[slot] for slot in slots],
                first,
                second,
                [],
                [self._taken[slot] for slot in slots],
                fused=True,
                amsgrad=False,
                beta1=_BETA1,
                beta2=_BETA2,
                lr=step.learning_rate,
                weight_decay=step.weight_decay,
                eps=_EPS,
                maximize=False,
            )
