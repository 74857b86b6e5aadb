"""The equations of a transformer block, forward and backward, written once for training, prefill and decoding.

legend   N tokens, M tokens whose output is needed (all, or in the last block those that predict), d width, D outputs of a layer,
         H query heads, G key-value heads, e width of a head, R tables of rotary embeddings

    a = norm(x)      q, k, v = a Wqkv^T    x <- x + attention(rope(q), rope(k), v) Wo^T
    m = norm(x)      g, u = m Wup^T        x <- x + (act(g) * u) Wdown^T

Where a model has them, q and k are normalised per head before they are rotated, and both updates of x are normalised before they are
added; an ungated block has act(u) for act(g) * u. Every product may have low-rank updates. A pass says through `Attention` what its
tokens attend to: the rows of a training batch, of a prefill, or a cache. The backward pass reads the activations that the forward pass
saved, which is less than autograd would save.
Source: Vaswani et al. 2017 (arXiv 1706.03762); Touvron et al. 2023, LLaMA (arXiv 2302.13971); Shazeer 2020, gates (arXiv 2002.05202).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from clusterlora.engine import kernels
from clusterlora.engine.attention import Heads
from clusterlora.engine.fused_linear import FusedLinear, LayerFactors
from clusterlora.engine.norms import Norm
from clusterlora.engine.rope import rotated

BlockFactors = Mapping[str, Sequence[LayerFactors]]
"""The factors of a batch on each fused linear of a block, by the names in `Block.linears`."""

NormSaved = tuple[Tensor, ...]


@runtime_checkable
class Attention(Protocol):
    """What the tokens of one pass attend to in one block."""

    def attend(
        self, heads: Heads, q: Float[Tensor, "N H e"], k: Float[Tensor, "N G e"], v: Float[Tensor, "N G e"]
    ) -> tuple[Float[Tensor, "M He"], Any]:
        """Return the attention output of the tokens whose output is needed, and what `backward` takes."""
        ...

    def select(self, x: Float[Tensor, "N d"]) -> Float[Tensor, "M d"]:
        """Return the tokens whose output is needed."""
        ...


@runtime_checkable
class DifferentiableAttention(Attention, Protocol):
    """Attention in a pass that goes backward, too."""

    def scatter(self, dx: Float[Tensor, "M d"]) -> Float[Tensor, "N d"]:
        """Return the gradient of what `select` read: zero for the other tokens."""
        ...

    def backward(
        self, heads: Heads, saved: Any, do: Float[Tensor, "N He"]
    ) -> tuple[Float[Tensor, "N H e"], Float[Tensor, "N G e"], Float[Tensor, "N G e"]]:
        """Return the gradients of q, k and v, given that of every token's attention output."""
        ...


@dataclass(frozen=True, slots=True)
class Activation:
    """An element-wise function, and its gradient from that of its output and its input."""

    name: str
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]

    def gated(self, gate: Float[Tensor, "N f"], up: Float[Tensor, "N f"]) -> Float[Tensor, "N f"]:
        """Return act(gate) * up."""
        if kernels.serve(gate.device, gate.dtype):
            from clusterlora.engine.kernels.gated import gated

            return gated(gate, up, self.name)
        return self.forward(gate).mul_(up)

    def gated_backward(
        self, dproduct: Float[Tensor, "N f"], gate: Float[Tensor, "N f"], up: Float[Tensor, "N f"]
    ) -> Sequence[Tensor] | Float[Tensor, "N both"]:
        """Return the gradients of gate and up, or both as one tensor; overwrites `dproduct`."""
        if kernels.serve(gate.device, gate.dtype):
            from clusterlora.engine.kernels.gated import gated_backward

            return gated_backward(dproduct, gate, up, self.name)
        dup = self.forward(gate).mul_(dproduct)
        return [self.backward(dproduct.mul_(up), gate), dup]


def _gelu_tanh(name: str) -> Activation:
    return Activation(
        name, partial(functional.gelu, approximate="tanh"), lambda dy, x: torch.ops.aten.gelu_backward(dy, x, approximate="tanh")
    )


ACTIVATIONS = {
    "silu": Activation("silu", functional.silu, torch.ops.aten.silu_backward),
    "gelu": Activation("gelu", functional.gelu, torch.ops.aten.gelu_backward),
    "gelu_new": _gelu_tanh("gelu_new"),
    "gelu_pytorch_tanh": _gelu_tanh("gelu_pytorch_tanh"),
}
"""By the name that transformers' configurations use."""


@dataclass(slots=True)
class SavedActivations:
    """What the backward pass of a block reads, named as in the forward pass; `h_*` are the activations of factors."""

    a: Tensor
    norm_in: NormSaved
    h_qkv: list[list[Tensor]]
    norm_q: NormSaved
    norm_k: NormSaved
    attended: Any
    o: Tensor
    h_out: list[list[Tensor]]
    norm_attended: NormSaved
    m: Tensor
    norm_mid: NormSaved
    h_up: list[list[Tensor]]
    parts: list[Tensor]
    """Gate and up of a gated block, up alone of another."""
    product: Tensor
    h_down: list[list[Tensor]]
    norm_mlp: NormSaved

    @property
    def n_bytes(self) -> int:
        """Bytes of these activations."""
        return sum(tensor.nbytes for tensor in _tensors_of([getattr(self, field.name) for field in fields(self)]))


def _tensors_of(nested: object) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    return [tensor for part in nested for tensor in _tensors_of(part)] if isinstance(nested, list | tuple) else []


@dataclass(frozen=True, slots=True)
class Block:
    """A transformer block: its frozen weights, and which of the optional parts it has."""

    norm_in: Norm
    qkv: FusedLinear
    heads: Heads
    out: FusedLinear
    norm_mid: Norm
    up: FusedLinear
    """Gate and up projections as two parts; one part is an ungated block."""
    down: FusedLinear
    activation: Activation
    rope: int | None = 0
    """Which of the decoder's tables of rotary embeddings rotates queries and keys."""
    norm_q: Norm | None = None
    norm_k: Norm | None = None
    norm_attended: Norm | None = None
    """Of the attention's update of x."""
    norm_mlp: Norm | None = None
    """Of the multilayer perceptron's update of x."""

    @property
    def linears(self) -> dict[str, FusedLinear]:
        """The fused linears by name, in execution order; all but `qkv` come after attention."""
        return {"qkv": self.qkv, "out": self.out, "up": self.up, "down": self.down}

    def forward(
        self, x: Float[Tensor, "N d"], factors: BlockFactors, attention: Attention, cos: Float[Tensor, "R N w"], sin: Float[Tensor, "R N w"]
    ) -> tuple[Float[Tensor, "M d"], SavedActivations]:
        """Return the block's output, and the activations for its backward pass.

        Args:
            cos: cosine of every token's position, as `engine.rope` has it; `sin` likewise.
        """
        a, norm_in = self.norm_in.forward(x)
        qkv, h_qkv = self.qkv.forward(a, factors["qkv"])
        q, k, v = (part.unflatten(-1, (-1, self.heads.dim)) for part in qkv)
        q, norm_q = _normalised(self.norm_q, q)
        k, norm_k = _normalised(self.norm_k, k)
        if self.rope is not None:
            q, k = rotated(q, k, cos[self.rope], sin[self.rope])
        o, attended = attention.attend(self.heads, q, k, v)
        x = attention.select(x)
        (y,), h_out = self.out.forward(o, factors["out"])
        y, norm_attended = _normalised(self.norm_attended, y)
        x, m, norm_mid = self.norm_mid.add_forward(y, x)
        parts, h_up = self.up.forward(m, factors["up"])
        product = self.activation.forward(parts[0]) if len(parts) == 1 else self.activation.gated(parts[0], parts[1])
        (y,), h_down = self.down.forward(product, factors["down"])
        y, norm_mlp = _normalised(self.norm_mlp, y)
        saved = SavedActivations(
            a, norm_in, h_qkv, norm_q, norm_k, attended, o, h_out, norm_attended, m, norm_mid, h_up, parts, product, h_down, norm_mlp
        )
        return y.add_(x), saved

    def backward(
        self,
        dx: Float[Tensor, "M d"],
        saved: SavedActivations,
        factors: BlockFactors,
        attention: DifferentiableAttention,
        cos: Float[Tensor, "R N w"],
        sin: Float[Tensor, "R N w"],
        *,
        input_gradient: bool = True,
    ) -> Float[Tensor, "N d"]:
        """Add to the gradients of the trained factors, given that of the output; return that of the input.

        Args:
            input_gradient: without it only what passes the block by is returned, which costs nothing.
        """
        dy = _norm_backward(self.norm_mlp, dx, saved.norm_mlp)
        dproduct = self.down.backward([dy], saved.product, saved.h_down, factors["down"])
        dm = self.up.backward(self._activation_backward(dproduct, saved.parts), saved.m, saved.h_up, factors["up"])
        dx = self.norm_mid.backward(dm, saved.norm_mid, add=dx)
        dy = _norm_backward(self.norm_attended, dx, saved.norm_attended)
        do = self.out.backward([dy], saved.o, saved.h_out, factors["out"])
        dx, do = attention.scatter(dx), attention.scatter(do)
        dqkv = self._before_attention(*attention.backward(self.heads, saved.attended, do), saved, cos, sin)
        if not input_gradient:
            self.qkv.backward_factors(dqkv, saved.a, saved.h_qkv, factors["qkv"])
            return dx
        da = self.qkv.backward(dqkv, saved.a, saved.h_qkv, factors["qkv"])
        return self.norm_in.backward(da, saved.norm_in, add=dx)

    def _before_attention(
        self, dq: Tensor, dk: Tensor, dv: Tensor, saved: SavedActivations, cos: Tensor, sin: Tensor
    ) -> Sequence[Tensor] | Tensor:
        """Return the gradient of the projections to queries, keys and values, given that of what attention read."""
        if kernels.serve(dq.device, dq.dtype) and self.norm_q is None and self.norm_k is None:
            from clusterlora.engine.kernels.rope import rope_backward_packed

            return rope_backward_packed(dq, dk, dv, *((None, None) if self.rope is None else (cos[self.rope], sin[self.rope])))
        if self.rope is not None:
            dq, dk = rotated(dq, dk, cos[self.rope], -sin[self.rope])
        dq, dk = _norm_backward(self.norm_q, dq, saved.norm_q), _norm_backward(self.norm_k, dk, saved.norm_k)
        return [part.flatten(1) for part in (dq, dk, dv)]

    def _activation_backward(self, dproduct: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor] | Tensor:
        """Return the gradient of each part, or that of both as one tensor; overwrites `dproduct`."""
        if len(parts) == 1:
            return [self.activation.backward(dproduct, parts[0])]
        return self.activation.gated_backward(dproduct, parts[0], parts[1])


def _normalised(norm: Norm | None, x: Tensor) -> tuple[Tensor, NormSaved]:
    return (x, ()) if norm is None else norm.forward(x)


def _norm_backward(norm: Norm | None, dy: Tensor, saved: NormSaved) -> Tensor:
    return dy if norm is None else norm.backward(dy, saved)
