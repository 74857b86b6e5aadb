"""Normalisation layers, forward and backward; their weights are frozen.

legend   d width
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from clusterlora.engine import kernels


@runtime_checkable
class Norm(Protocol):
    """A normalisation of the last axis."""

    def forward(self, x: Float[Tensor, "... d"]) -> tuple[Float[Tensor, "... d"], tuple[Tensor, ...]]:
        """Return the normalised tensor, and what `backward` takes."""
        ...

    def add_forward(
        self, x: Float[Tensor, "... d"], residual: Float[Tensor, "... d"]
    ) -> tuple[Float[Tensor, "... d"], Float[Tensor, "... d"], tuple[Tensor, ...]]:
        """Return x + residual, which overwrites x, that normalised, and what `backward` takes."""
        ...

    def backward(
        self, dy: Float[Tensor, "... d"], saved: tuple[Tensor, ...], add: Float[Tensor, "... d"] | None = None
    ) -> Float[Tensor, "... d"]:
        """Return the gradient of the input, with `add` added."""
        ...


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """y = weight * unit, unit = x * inverse, inverse = 1 / rms(x), computed in at least float32.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467).
    """

    weight: Float[Tensor, " d"]
    eps: float
    wide_weight: bool = False
    """Whether the weight is applied before rounding to the dtype of x, as in Gemma; Llama applies it after."""

    def forward(self, x: Float[Tensor, "... d"]) -> tuple[Float[Tensor, "... d"], tuple[Tensor, ...]]:
        """See `Norm`."""
        if kernels.serve(x.device, x.dtype):
            from clusterlora.engine.kernels.rms_norm import rms_norm

            y, inverse = rms_norm(x, self.weight, self.eps, wide_weight=self.wide_weight)
            return y, (x, inverse)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.rsqrt(torch.linalg.vecdot(wide, wide)[..., None] / x.shape[-1] + self.eps)
        wide_unit = wide * inverse
        unit = wide_unit.to(x.dtype)
        return (wide_unit * self.weight).to(x.dtype) if self.wide_weight else unit * self.weight, (unit, inverse)

    def add_forward(
        self, x: Float[Tensor, "... d"], residual: Float[Tensor, "... d"]
    ) -> tuple[Float[Tensor, "... d"], Float[Tensor, "... d"], tuple[Tensor, ...]]:
        """See `Norm`."""
        if kernels.serve(x.device, x.dtype):
            from clusterlora.engine.kernels.rms_norm import add_rms_norm

            total, y, inverse = add_rms_norm(x, residual, self.weight, self.eps, wide_weight=self.wide_weight)
            return total, y, (total, inverse)
        total = x.add_(residual)
        return total, *self.forward(total)

    def backward(
        self, dy: Float[Tensor, "... d"], saved: tuple[Tensor, ...], add: Float[Tensor, "... d"] | None = None
    ) -> Float[Tensor, "... d"]:
        """See `Norm`: (g - unit * mean(g * unit)) * inverse, with g = dy * weight. Kernels save x and not unit = x * inverse."""
        unit, inverse = saved
        if kernels.serve(dy.device, dy.dtype):
            from clusterlora.engine.kernels.rms_norm import rms_norm_backward

            return rms_norm_backward(dy, unit, self.weight, inverse, add)
        g = (dy * self.weight).to(inverse.dtype)
        unit = unit.to(inverse.dtype)
        along = torch.linalg.vecdot(g, unit)[..., None] / g.shape[-1]
        dx = torch.addcmul(g, unit, along, value=-1).mul_(inverse).to(dy.dtype)
        return dx if add is None else dx.add_(add)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """y = weight * (x - mean(x)) / std(x) + bias. Source: layer normalisation, arXiv 1607.06450."""

    weight: Float[Tensor, " d"]
    bias: Float[Tensor, " d"]
    eps: float

    def forward(self, x: Float[Tensor, "... d"]) -> tuple[Float[Tensor, "... d"], tuple[Tensor, ...]]:
        """See `Norm`."""
        y, mean, inverse = torch.native_layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return y, (x, mean, inverse)

    def add_forward(
        self, x: Float[Tensor, "... d"], residual: Float[Tensor, "... d"]
    ) -> tuple[Float[Tensor, "... d"], Float[Tensor, "... d"], tuple[Tensor, ...]]:
        """See `Norm`."""
        total = x.add_(residual)
        return total, *self.forward(total)

    def backward(
        self, dy: Float[Tensor, "... d"], saved: tuple[Tensor, ...], add: Float[Tensor, "... d"] | None = None
    ) -> Float[Tensor, "... d"]:
        """See `Norm`."""
        x, mean, inverse = saved
        dx, _, _ = torch.ops.aten.native_layer_norm_backward(
            dy, x, x.shape[-1:], mean, inverse, self.weight, self.bias, [True, False, False]
        )
        return dx if add is None else dx.add_(add)
