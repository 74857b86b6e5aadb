"""Linear layers that read the same tensor, as one, with the low-rank updates of a batch.

legend   N tokens of all rows, d_in width of x, D outputs of a layer
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from clusterlora.engine.linear_layers import linear_layer
from clusterlora.engine.packing import Segment


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

    The outputs are one part per layer, or with `parts` those of the only layer, cut: a `qkv_proj` computes queries, keys and values.
    """

    names: tuple[str, ...]
    d_outs: tuple[int, ...]
    weight: Float[Tensor, "D d_in"]
    bias: Float[Tensor, " D"] | None
    parts: tuple[int, ...] | None = None

    @property
    def weights(self) -> tuple[Float[Tensor, "_D d_in"], ...]:
        """The weight of each layer."""
        return self.weight.split(self.d_outs)

    def products(self, x: Float[Tensor, "N d_in"]) -> list[Float[Tensor, "N _D"]]:
        """Return each layer's outputs: views of one product on a GPU, separate products on a CPU, which is slow on strided views."""
        if self.weight.is_cuda:
            return list(functional.linear(x, self.weight, self.bias).split(self.d_outs, -1))
        biases = [None] * len(self.d_outs) if self.bias is None else self.bias.split(self.d_outs)
        return [functional.linear(x, weight, bias) for weight, bias in zip(self.weights, biases, strict=True)]

    def forward(
        self, x: Float[Tensor, "N d_in"], factors: Sequence[LayerFactors] = ()
    ) -> tuple[list[Float[Tensor, "N _D"]], list[list[Tensor]]]:
        """Return the parts of the output, and the activations of the factors that `backward` takes."""
        ys = self.products(x)
        saved = [adapted.factors.forward(x, [ys[n] for n in adapted.layers], adapted.segments) for adapted in factors]
        return ys if self.parts is None else list(ys[0].split(self.parts, -1)), saved

    def backward(
        self,
        dparts: Sequence[Float[Tensor, "N _D"]],
        x: Float[Tensor, "N d_in"],
        saved: Sequence[list[Tensor]],
        factors: Sequence[LayerFactors],
    ) -> Float[Tensor, "N d_in"]:
        """Add to the gradients of the trained factors; return the gradient of x."""
        dys = self._of_layers(dparts)
        dx = input_gradient(dys, self.weights)
        _factors_backward(dys, x, saved, factors, dx)
        return dx

    def backward_factors(
        self,
        dparts: Sequence[Float[Tensor, "N _D"]],
        x: Float[Tensor, "N d_in"],
        saved: Sequence[list[Tensor]],
        factors: Sequence[LayerFactors],
    ) -> None:
        """Add to the gradients of the trained factors alone."""
        _factors_backward(self._of_layers(dparts), x, saved, factors, None)

    def _of_layers(self, dparts: Sequence[Tensor]) -> Sequence[Tensor]:
        return dparts if self.parts is None else [torch.cat(list(dparts), -1)]


def _factors_backward(
    dys: Sequence[Tensor], x: Tensor, saved: Sequence[list[Tensor]], factors: Sequence[LayerFactors], dx: Tensor | None
) -> None:
    for adapted, activations in zip(factors, saved, strict=True):
        adapted.factors.backward(x, activations, [dys[n] for n in adapted.layers], dx, adapted.segments)


def input_gradient(dys: Sequence[Float[Tensor, "N _D"]], weights: Sequence[Float[Tensor, "_D d_in"]]) -> Float[Tensor, "N d_in"]:
    """Return the gradient of the tensor that layers with these weights read: sum_i dy_i W_i."""
    dx = torch.mm(dys[0], weights[0])
    for dy, weight in zip(dys[1:], weights[1:], strict=True):
        dx.addmm_(dy, weight)
    return dx


@torch.no_grad()
def fused(path: str, owner: nn.Module, *names: str, parts: tuple[int, ...] | None = None) -> FusedLinear:
    """Return the layers `names` of the module `owner`, which is at `path` in its model, as one; each must be a `linear_layer`.

    The weights of several layers are stacked, and the layers become views of the stack.
    """
    layers = [layer for layer in (linear_layer(owner.get_submodule(name)) for name in names) if layer is not None]
    full_names, d_outs = tuple(f"{path}.{name}" for name in names), tuple(layer.d_out for layer in layers)
    if len(layers) == 1:
        return FusedLinear(full_names, d_outs, layers[0].weight, layers[0].bias, parts)
    weight = torch.cat([layer.weight for layer in layers])
    for layer, part in zip(layers, weight.split(d_outs), strict=True):
        layer.module.weight = nn.Parameter(part, requires_grad=False)
    biases = [weight.new_zeros(layer.d_out) if layer.bias is None else layer.bias for layer in layers]
    has_bias = any(layer.bias is not None for layer in layers)
    return FusedLinear(full_names, d_outs, weight, torch.cat(biases) if has_bias else None)
