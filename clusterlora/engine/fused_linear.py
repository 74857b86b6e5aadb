"""Linear layers that read the same tensor, as one, with the low-rank updates of a batch.

legend   N tokens of all rows, d_in width of x, D outputs of a layer
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from clusterlora.engine import kernels
from clusterlora.engine.packing import Segment
from clusterlora.models.linear_layers import LinearLayer, linear_layer


@runtime_checkable
class LowRankFactors(Protocol):
    """Low-rank factors for the rows of one batch; `engine.low_rank_update` has the equations."""

    def forward(self, x: Tensor, ys: Sequence[Tensor], segments: Sequence[Segment], /) -> list[Tensor]:
        """Add the updates to the layers' outputs `ys` [N D]; return the activations that `backward` takes."""
        ...

    def backward(
        self, x: Tensor, saved: Sequence[Tensor], dys: Sequence[Tensor], dx: Tensor | None, segments: Sequence[Segment], /
    ) -> None:
        """Add to the gradients of trained factors and, unless it is None, to `dx` [N d_in]."""
        ...

    @property
    def n_bytes(self) -> int:
        """Bytes that the factors take for this batch alone."""
        ...


@dataclass(frozen=True, slots=True)
class LayerFactors:
    """Factors for a batch whose tokens lie in these segments, and the indices of the layers of a fused linear that they adapt."""

    factors: LowRankFactors
    layers: tuple[int, ...]
    segments: Sequence[Segment]


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """Linear layers that read the same tensor. `weight` stacks their weights to D outputs in all; the layers hold views of it.

    It is None for layers that bitsandbytes quantised: each is dequantised for every product. The outputs are one part per layer, or with
    `parts` those of the only layer, cut: a `qkv_proj` computes queries, keys and values.
    """

    names: tuple[str, ...]
    d_in: int
    d_outs: tuple[int, ...]
    weight: Float[Tensor, "D d_in"] | None
    bias: Float[Tensor, " D"] | None
    parts: tuple[int, ...] | None = None
    quantised: tuple[LinearLayer, ...] = ()

    def weights(self, dtype: torch.dtype) -> Iterator[Float[Tensor, "_D d_in"]]:
        """Yield the weight of each layer."""
        yield from (layer.weight(dtype) for layer in self.quantised) if self.weight is None else self.weight.split(self.d_outs)

    def products(self, x: Float[Tensor, "N d_in"]) -> list[Float[Tensor, "N _D"]]:
        """Return each layer's outputs: views of one tensor on a GPU, separate products on a CPU, which is slow on strided views."""
        if self.weight is not None and self.weight.is_cuda:
            return list(functional.linear(x, self.weight, self.bias).split(self.d_outs, -1))
        if x.is_cuda:
            y = x.new_empty(*x.shape[:-1], sum(self.d_outs)) if self.bias is None else self.bias.expand(*x.shape[:-1], -1).clone()
            for part, weight in zip(y.split(self.d_outs, -1), self.weights(x.dtype), strict=True):
                torch.addmm(part, x, weight.T, beta=0 if self.bias is None else 1, out=part)
            return list(y.split(self.d_outs, -1))
        biases = [None] * len(self.d_outs) if self.bias is None else self.bias.split(self.d_outs)
        return [functional.linear(x, weight, bias) for weight, bias in zip(self.weights(x.dtype), biases, strict=True)]

    def forward(
        self, x: Float[Tensor, "N d_in"], factors: Sequence[LayerFactors] = ()
    ) -> tuple[list[Float[Tensor, "N _D"]], list[list[Tensor]]]:
        """Return the parts of the output, and the activations of the factors that `backward` takes."""
        ys = self.products(x)
        saved = [adapted.factors.forward(x, [ys[n] for n in adapted.layers], adapted.segments) for adapted in factors]
        return ys if self.parts is None else list(ys[0].split(self.parts, -1)), saved

    def backward(
        self,
        dparts: Sequence[Float[Tensor, "N _D"]] | Float[Tensor, "N D"],
        x: Float[Tensor, "N d_in"],
        saved: Sequence[list[Tensor]],
        factors: Sequence[LayerFactors],
    ) -> Float[Tensor, "N d_in"]:
        """Add to the gradients of the trained factors; return the gradient of x.

        Args:
            dparts: the gradient of each part of the output, or that of all parts as one tensor.
        """
        dy = self._as_one(dparts)
        dys = self._of_layers(dy)
        dx = torch.mm(dy, self.weight) if isinstance(dy, Tensor) and self.weight is not None else input_gradient(dys, self.weights(x.dtype))
        _factors_backward(dys, x, saved, factors, dx)
        return dx

    def backward_factors(
        self,
        dparts: Sequence[Float[Tensor, "N _D"]] | Float[Tensor, "N D"],
        x: Float[Tensor, "N d_in"],
        saved: Sequence[list[Tensor]],
        factors: Sequence[LayerFactors],
    ) -> None:
        """Add to the gradients of the trained factors alone."""
        _factors_backward(self._of_layers(self._as_one(dparts)), x, saved, factors, None)

    def _as_one(self, dparts: Sequence[Tensor] | Tensor) -> Sequence[Tensor] | Tensor:
        """Return parts as one tensor for kernels, which read columns of one tensor, and where they are parts of one layer's output."""
        if isinstance(dparts, Tensor) or (self.parts is None and not kernels.serve(dparts[0].device, dparts[0].dtype)):
            return dparts
        return dparts[0] if len(dparts) == 1 else torch.cat(list(dparts), -1)

    def _of_layers(self, dparts: Sequence[Tensor] | Tensor) -> Sequence[Tensor]:
        return dparts.split(self.d_outs, -1) if isinstance(dparts, Tensor) else dparts


def _factors_backward(
    dys: Sequence[Tensor], x: Tensor, saved: Sequence[list[Tensor]], factors: Sequence[LayerFactors], dx: Tensor | None
) -> None:
    for adapted, activations in zip(factors, saved, strict=True):
        adapted.factors.backward(x, activations, [dys[n] for n in adapted.layers], dx, adapted.segments)


def input_gradient(dys: Sequence[Float[Tensor, "N _D"]], weights: Iterable[Float[Tensor, "_D d_in"]]) -> Float[Tensor, "N d_in"]:
    """Return the gradient of the tensor that layers with these weights read: sum_i dy_i W_i."""
    dx: Tensor | None = None
    for dy, weight in zip(dys, weights, strict=True):
        dx = torch.mm(dy, weight) if dx is None else dx.addmm_(dy, weight)
    assert dx is not None, "no layers"
    return dx


@torch.no_grad()
def fused(path: str, owner: nn.Module, *names: str, parts: tuple[int, ...] | None = None) -> FusedLinear:
    """Return the layers `names` of the module `owner`, which is at `path` in its model, as one; each must be a `linear_layer`.

    The weights of several layers are stacked, and the layers become views of the stack, unless some are quantised.
    """
    layers = tuple(layer for layer in (linear_layer(owner.get_submodule(name)) for name in names) if layer is not None)
    full_names, d_in, d_outs = tuple(f"{path}.{name}" for name in names), layers[0].d_in, tuple(layer.d_out for layer in layers)
    if len(layers) == 1:
        return FusedLinear(full_names, d_in, d_outs, layers[0].stored, layers[0].bias, parts, layers if layers[0].stored is None else ())
    stored = [layer.stored for layer in layers if layer.stored is not None]
    weight = torch.cat(stored) if len(stored) == len(layers) else None
    if weight is not None:
        for layer, part in zip(layers, weight.split(d_outs), strict=True):
            layer.module.weight = nn.Parameter(part, requires_grad=False)
    given = [layer.bias for layer in layers if layer.bias is not None]
    biases = [given[0].new_zeros(layer.d_out) if layer.bias is None else layer.bias for layer in layers] if given else []
    bias = torch.cat(biases) if biases else None
    return FusedLinear(full_names, d_in, d_outs, weight, bias, quantised=layers if weight is None else ())
