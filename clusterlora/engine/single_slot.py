"""A fused LoRA for a batch whose rows all have one slot: no factors are gathered, and every product is over all tokens at once.

legend   b row, N tokens of all rows, d_in width of x, r rank of a layer, R of all layers, D outputs of a layer

The input scale f_b = s m_b, which differs between rows, multiplies their tokens instead of A:

    h = A (f * x)^T    y = x W^T + h^T B^T        u = B^T dy^T    dx = dy W + (u^T A) * f        dA += u (f * x)    dB^T += h dy

the equations of `engine.low_rank_update` for one row of N tokens. A single adapter's step is so small that launching its products costs
as much as computing them; this path launches a third of them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clusterlora.engine.packing import Segment
from clusterlora.engine.stacked_lora import FusedLora


class SingleSlotLora:
    """One slot's factors of a fused LoRA; gradients are added to the slot's own."""

    def __init__(self, lora: FusedLora, slot: int, input_scale: Float[Tensor, "N feature"], dtype: torch.dtype) -> None:
        """Cast the slot's factors.

        Args:
            input_scale: s m of every token over the inputs of all fused LoRAs, or a single number for all of them.
        """
        self._a = lora.a[slot].to(dtype)
        self._bs = [b[slot].to(dtype) for b in lora.bs]
        self._grad_a = lora.grad_a[slot]
        self._grad_bs = [grad_b[slot] for grad_b in lora.grad_bs]
        self._rank = lora.rank
        self._input_scale = lora.own_inputs(input_scale)

    def forward(self, x: Float[Tensor, "N d_in"], ys: Sequence[Float[Tensor, "N _D"]], segments: Sequence[Segment]) -> list[Tensor]:  # noqa: ARG002
        """Add the updates to the layers' outputs `ys`; return the activations that `backward` takes: h and the scaled input."""
        scaled = (x * self._input_scale).to(x.dtype)
        h = torch.mm(self._a, scaled.T)
        for y, b, h_of_layer in zip(ys, self._bs, h.split(self._rank), strict=True):
            y.addmm_(h_of_layer.T, b)
        return [h, scaled]

    def backward(
        self,
        x: Float[Tensor, "N d_in"],  # noqa: ARG002
        saved: Sequence[Tensor],
        dys: Sequence[Float[Tensor, "N _D"]],
        dx: Float[Tensor, "N d_in"] | None,
        segments: Sequence[Segment],  # noqa: ARG002
    ) -> None:
        """Add to the gradients of the slot's factors and, unless it is None, to the gradient of x."""
        h, scaled = saved
        u = torch.empty_like(h)
        for b, dy, u_of_layer in zip(self._bs, dys, u.split(self._rank), strict=True):
            torch.mm(b, dy.T, out=u_of_layer)
        _add_product(self._grad_a, u, scaled)
        for grad_b, h_of_layer, dy in zip(self._grad_bs, h.split(self._rank), dys, strict=True):
            _add_product(grad_b, h_of_layer, dy)
        if dx is not None:
            dx.add_(torch.mm(u.T, self._a) * self._input_scale)

    @property
    def n_bytes(self) -> int:
        """Bytes of the input scale; the factors are counted with the slots."""
        return self._input_scale.nbytes


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left, right))
