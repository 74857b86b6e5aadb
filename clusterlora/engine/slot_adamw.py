"""AdamW on the rows of a matrix: every slot is clipped, scheduled and stepped separately, in a few kernels for all of them.

Launching the kernels of one slot's step takes a GPU longer than running them, and every pass steps every slot.
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
"""Added to the norm in the denominator, as in `torch.nn.utils.clip_grad_norm_`."""


@dataclass(frozen=True, slots=True, order=True)
class SlotStep:
    """The hyper-parameters of one slot's step."""

    learning_rate: float
    weight_decay: float
    max_grad_norm: float


class SlotAdamW:
    """The moments and step counts of K slots; parameters and gradients are rows of two matrices [K, n]."""

    def __init__(self, parameters: Float[Tensor, "k n"], gradients: Float[Tensor, "k n"]) -> None:
        self._gradients = gradients
        self.first = torch.zeros_like(parameters)
        self.second = torch.zeros_like(parameters)
        self._rows: list[Sequence[Tensor]] = [matrix.unbind(0) for matrix in (parameters, self.first, self.second)]
        self._n_steps = [torch.zeros((), device=parameters.device) for _ in parameters]

    def reset(self, slot: int, *, n_steps: int = 0) -> None:
        """Zero a slot's moments and set the number of steps it has taken."""
        self.first[slot].zero_()
        self.second[slot].zero_()
        self._n_steps[slot].fill_(n_steps)

    def step(self, steps: Mapping[int, SlotStep]) -> None:
        """Step each of these slots with its gradient clipped to `max_grad_norm`; other slots are not touched."""
        if not steps:
            return
        clipped = self._gradients[list(steps)]
        max_norms = clipped.new_tensor([step.max_grad_norm for step in steps.values()])
        clipped.mul_((max_norms / (torch.linalg.vector_norm(clipped, dim=1) + _CLIP_EPS)).clamp_(max=1)[:, None])
        gradient_by_slot = dict(zip(steps, clipped.unbind(0), strict=True))
        for step, equal in groupby(sorted(steps, key=steps.__getitem__), key=steps.__getitem__):
            slots = list(equal)
            parameters, first, second = ([rows[slot] for slot in slots] for rows in self._rows)
            adamw(
                parameters,
                [gradient_by_slot[slot] for slot in slots],
                first,
                second,
                [],
                [self._n_steps[slot] for slot in slots],
                fused=True,
                amsgrad=False,
                beta1=_BETA1,
                beta2=_BETA2,
                lr=step.learning_rate,
                weight_decay=step.weight_decay,
                eps=_EPS,
                maximize=False,
            )
