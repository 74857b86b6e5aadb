"""A group's factors for a batch whose rows are all one adapter's: nothing is gathered, every product is over all tokens at once.

legend   b row, N tokens of all rows, d_in width of x, r rank of a layer, R of all together, D outputs of a layer

What differs between rows, f_b = s m_b, is put on their tokens instead of into A:

    h = A (f * x)^T    y = x W^T + h^T B^T        u = B^T dy^T    dx = dy W + (u^T A) * f        dA += u (f * x)    dB^T += h dy

the equations of `models.low_rank_update` for one row of N tokens. A single adapter's step is so small that launching its products costs
as much as computing them; this path launches a third of them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clusterlora.models.packing import Run
from clusterlora.training.stacked_lora import Group


class SingleSlotLora:
    """The factors of one slot, on a batch that is all its own; its gradients are added where they are kept."""

    def __init__(self, group: Group, slot: int, factor: Float[Tensor, "N feature"], dtype: torch.dtype) -> None:
        """Take the slot's part of a group.

        Args:
            factor: s m of every token, over the inputs of all groups, or the one number that it is everywhere.
        """
        self._a = group.a[slot].to(dtype)
        self._bs = [b[slot].to(dtype) for b in group.bs]
        self._grad_a = group.grad_a[slot]
        self._grad_bs = [grad[slot] for grad in group.grad_bs]
        self._rank = group.rank
        self._factor = group.of_inputs(factor)

    def forward(self, x: Float[Tensor, "N d_in"], ys: Sequence[Float[Tensor, "N _D"]], runs: Sequence[Run]) -> list[Tensor]:  # noqa: ARG002
        """Add to the layers' outputs; return what came out of A, and what went in."""
        read = (x * self._factor).to(x.dtype)
        h = torch.mm(self._a, read.T)
        for y, b, part in zip(ys, self._bs, h.split(self._rank), strict=True):
            y.addmm_(part.T, b)
        return [h, read]

    def backward(
        self,
        x: Float[Tensor, "N d_in"],  # noqa: ARG002
        hs: Sequence[Tensor],
        dys: Sequence[Float[Tensor, "N _D"]],
        dx: Float[Tensor, "N d_in"] | None,
        runs: Sequence[Run],  # noqa: ARG002
    ) -> None:
        """Add to the gradients of the slot's factors, and to the gradient of x."""
        h, read = hs
        u = torch.empty_like(h)
        for b, dy, part in zip(self._bs, dys, u.split(self._rank), strict=True):
            torch.mm(b, dy.T, out=part)
        _add_product(self._grad_a, u, read)
        for to, part, dy in zip(self._grad_bs, h.split(self._rank), dys, strict=True):
            _add_product(to, part, dy)
        if dx is not None:
            dx.add_(torch.mm(u.T, self._a) * self._factor)

    @property
    def n_bytes(self) -> int:
        """What is held beside what comes in and goes out."""
        return self._factor.nbytes


def _add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    if to.dtype == left.dtype:
        to.addmm_(left, right)
    else:
        to.add_(torch.mm(left, right))
