"""AdamW on the rows of a matrix: every slot is clipped, scheduled and stepped separately, in a few kernels for all of them.

Launching the kernels of one slot's step takes a GPU longer than running them, and every pass steps every slot.
Source: Loshchilov & Hutter 2019, decoupled weight decay (arXiv 1711.05101).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.adamw import adamw

from clusterlora.engine import kernels
from clusterlora.engine.cuda_graphs import CudaGraphCache, pinned

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
_CLIP_EPS = 1e-6
"""Added to the norm in the denominator, as in `torch.nn.utils.clip_grad_norm_`."""


@dataclass(frozen=True, slots=True, order=True)
class SlotStep:
    """The hyper-parameters of one slot's step."""

    learning_rate: float
    weight_decay: float
    max_grad_norm: float


@dataclass(frozen=True, slots=True)
class _Table:
    """The slots of a step, and what `kernels.slot_adamw` takes of each, with the largest norm in place of the factor of the gradient."""

    slots: Int[Tensor, " s"]
    table: Float[Tensor, "s 5"]


class SlotAdamW:
    """The moments and step counts of K slots; parameters and gradients are rows of two matrices [K, n]."""

    def __init__(self, parameters: Float[Tensor, "k n"], gradients: Float[Tensor, "k n"]) -> None:
        self._parameters = parameters
        self._gradients = gradients
        self.first = torch.zeros_like(parameters)
        self.second = torch.zeros_like(parameters)
        self._n_steps = [0] * len(parameters)
        self._graphs = CudaGraphCache[_Table](parameters.device)

    def reset(self, slot: int, *, n_steps: int = 0) -> None:
        """Zero a slot's moments and set the number of steps it has taken."""
        self.first[slot].zero_()
        self.second[slot].zero_()
        self._n_steps[slot] = n_steps

    def step(self, steps: Mapping[int, SlotStep]) -> None:
        """Step each of these slots with its gradient clipped to `max_grad_norm`; other slots are not touched."""
        if not steps:
            return
        if kernels.serve(self._parameters.device, self._parameters.dtype):
            self._step_by_kernel(steps)
        else:
            self._step_by_torch(steps)
        for slot in steps:
            self._n_steps[slot] += 1

    def _step_by_kernel(self, steps: Mapping[int, SlotStep]) -> None:
        rows = []
        for slot, step in steps.items():
            n = self._n_steps[slot] + 1
            rows.append((step.learning_rate, step.weight_decay, step.max_grad_norm, 1 - _BETA1**n, (1 - _BETA2**n) ** 0.5))
        self._graphs(self._run, pinned(_Table(torch.tensor(list(steps)), torch.tensor(rows, dtype=torch.float32)), self._parameters.device))

    def _run(self, steps: "_Table") -> Float[Tensor, " s"]:
        """Step slots; return the norms of their gradients."""
        from clusterlora.engine.kernels.slot_adamw import row_norms, slot_adamw

        norms = row_norms(self._gradients, steps.slots)
        steps.table[:, 2].div_(norms + _CLIP_EPS).clamp_(max=1)
        slot_adamw(self._parameters, self._gradients, self.first, self.second, steps.slots, steps.table)
        return norms

    def _step_by_torch(self, steps: Mapping[int, SlotStep]) -> None:
        clipped = self._gradients[list(steps)]
        max_norms = clipped.new_tensor([step.max_grad_norm for step in steps.values()])
        clipped.mul_((max_norms / (torch.linalg.vector_norm(clipped, dim=1) + _CLIP_EPS)).clamp_(max=1)[:, None])
        gradient_by_slot = dict(zip(steps, clipped.unbind(0), strict=True))
        for step, equal in groupby(sorted(steps, key=steps.__getitem__), key=steps.__getitem__):
            slots = list(equal)
            parameters, first, second = ([matrix[slot] for slot in slots] for matrix in (self._parameters, self.first, self.second))
            adamw(
                parameters,
                [gradient_by_slot[slot] for slot in slots],
                first,
                second,
                [],
                [torch.tensor(float(self._n_steps[slot]), device=self._parameters.device) for slot in slots],
                fused=True,
                amsgrad=False,
                beta1=_BETA1,
                beta2=_BETA2,
                lr=step.learning_rate,
                weight_decay=step.weight_decay,
                eps=_EPS,
                maximize=False,
            )
