"""A base model written out: the frozen weights of a transformers model, and its parts before and after the blocks.

legend   N tokens of all rows, n scored tokens (whose logits are used), d width, V vocabulary, R tables of rotary embeddings

The overhead of a transformers model (module calls, masks, cache objects) costs a small model more time than the arithmetic; here a layer
is a few dozen operations, and training controls exactly which activations are saved. A family of base models is a subclass in a file of
its own: how its modules become blocks, and which configurations are not those equations.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from clusterlora.engine import kernels, ragged_attention
from clusterlora.engine.attention import Heads
from clusterlora.engine.families.block import ACTIVATIONS, Block
from clusterlora.engine.fused_linear import FusedLinear
from clusterlora.engine.memory import tokens_per_chunk
from clusterlora.engine.norms import Norm
from clusterlora.engine.packing import Padding
from clusterlora.engine.rope import CosSin, RopeTable, RopeTables
from clusterlora.models.checks import declared
from clusterlora.models.linear_layers import linear_layer
from clusterlora.models.quantised import is_quantised

PAD_TO = 16
"""Rows are padded to a multiple of this: kernels are chosen and cached per shape, so few shapes are better."""
LOGITS_PER_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Logits in memory at a time, over all tokens and the vocabulary."""

_ROPE = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings whose angles depend on the position alone, not on the length of the sequence."""
_LAYERS = frozenset({"full_attention", "sliding_attention"})


class Decoder:
    """The base class of families: weights shared with a transformers model, and what training, prefill and decoding need of them."""

    architectures: ClassVar[tuple[str, ...]]
    """The transformers classes that this family writes out."""

    def __init__(self, model: Any) -> None:
        """Share the weights of a transformers model; those of fused layers are stacked and the model's layers become views of them."""
        self.embedding: Float[Tensor, "V d"] = model.get_input_embeddings().weight
        self.head: Float[Tensor, "V d"] = model.get_output_embeddings().weight
        self.logit_softcap: float | None = declared(model.config, "final_logit_softcapping")
        self.blocks: tuple[Block, ...] = tuple(self.block_of(model, number) for number in range(len(self.layers_of(model))))
        self.norm_out: Norm = self.norm_out_of(model)
        self._rope = RopeTables(self.rope_tables_of(model), self.device)
        self._built_for = (self.dtype, self.device)

    @classmethod
    def unsupported(cls, model: Any) -> str | None:
        """Return what in a model of these architectures the family does not compute; None if it computes all of it."""
        config = model.config
        if other := set(getattr(config, "layer_types", None) or ()) - _LAYERS:
            return f"its layers are {' and '.join(sorted(other))}"
        if other := set(_rope_types(config)) - _ROPE:
            return f"its rotary embeddings are {' and '.join(sorted(other))}"
        if (name := cls.activation_of(config)) not in ACTIVATIONS:
            return f"its activation is {name}"
        if model.get_output_embeddings().bias is not None:
            return "its output layer has a bias"
        if is_quantised(model.get_output_embeddings()):
            return "its output layer is quantised"
        leaves = [
            module for layer in cls.layers_of(model) for module in layer.modules() if isinstance(getattr(module, "weight", None), Tensor)
        ]
        others = {type(module).__name__ for module in leaves if linear_layer(module) is None and not type(module).__name__.endswith("Norm")}
        return f"its layers have {' and '.join(sorted(others))}" if others else None

    @classmethod
    def layers_of(cls, model: Any) -> nn.ModuleList:
        """Return the modules of the blocks."""
        return model.model.layers

    @classmethod
    def activation_of(cls, config: Any) -> str:
        """Return the name of the activation of the multilayer perceptron."""
        return config.hidden_act

    def block_of(self, model: Any, number: int) -> Block:
        """Return a block."""
        raise NotImplementedError

    def norm_out_of(self, model: Any) -> Norm:
        """Return the normalisation before the output layer."""
        raise NotImplementedError

    def rope_tables_of(self, model: Any) -> tuple[RopeTable, ...]:
        """Return a function from positions to cosine and sine for each kind of layer; it must not hold the model, which holds this."""
        return (rope_table(model.model.rotary_emb, self.embedding[:1]),)

    def embed(self, ids: Int[Tensor, " N"], position: Int[Tensor, " N"]) -> Float[Tensor, "N d"]:  # noqa: ARG002
        """Return the input of the first block."""
        return functional.embedding(ids, self.embedding)

    def logits(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n V"]:
        """Return the logits of normalised states."""
        logits = functional.linear(hidden, self.head)
        return logits if self.logit_softcap is None else torch.tanh(logits / self.logit_softcap) * self.logit_softcap

    def logits_backward(self, dlogits: Float[Tensor, "n V"], logits: Float[Tensor, "n V"]) -> Float[Tensor, "n d"]:
        """Return the gradient of what `logits` was given; overwrites both arguments."""
        if self.logit_softcap is not None:
            dlogits = dlogits.sub_(logits.div_(self.logit_softcap).square_().mul_(dlogits))
        return dlogits.to(self.dtype) @ self.head

    def cos_sin(self, positions: Int[Tensor, " N"], n_positions: int) -> tuple[Float[Tensor, "R N w"], Float[Tensor, "R N w"]]:
        """Return cosine and sine of the rotary embeddings of tokens at these positions, all below `n_positions`."""
        return self._rope.cos_sin(positions, n_positions)

    @property
    def fused_linears(self) -> Iterable[FusedLinear]:
        """All fused linears in execution order."""
        return (linear for block in self.blocks for linear in block.linears.values())

    @property
    def layer_names(self) -> frozenset[str]:
        """The full names of the layers that may have adapters: the linear layers of the blocks."""
        return frozenset(name for linear in self.fused_linears for name in linear.names)

    @property
    def heads(self) -> Heads:
        """The heads of the first block; those of all blocks have the same numbers and width."""
        return self.blocks[0].heads

    @property
    def padding(self) -> Padding:
        """Little padding on a CPU; uniform padding on a GPU, where shapes that recur become CUDA graphs. Training may need none."""
        return Padding(PAD_TO) if self.device.type == "cpu" else Padding(2 * PAD_TO, uniform=True)

    @property
    def training_padding(self) -> Padding:
        """No padding where the GPU's kernels need none."""
        ragged = self.has_kernels and all(ragged_attention.fits(block.heads, self.dtype, self.device) for block in self.blocks)
        return Padding(1, ragged=True) if ragged else self.padding

    @property
    def has_kernels(self) -> bool:
        """Whether `engine.kernels` computes this decoder's low-rank updates and element-wise functions."""
        return kernels.serve(self.device, self.dtype)

    @property
    def tokens_per_pass(self) -> int:
        """Tokens of a forward pass for which the widest activation stays within `memory.CHUNK_BYTES`."""
        return tokens_per_chunk(max(sum(linear.d_outs) for linear in self.fused_linears), self.device, self.dtype)

    @property
    def logit_rows_per_chunk(self) -> int:
        """Tokens whose logits are in memory at a time."""
        return max(1, LOGITS_PER_CHUNK[self.device.type] // len(self.head))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embedding.device

    @property
    def is_quantised(self) -> bool:
        """Whether any weights are dequantised for every product; no CUDA graph captures what bitsandbytes computes."""
        return any(linear.quantised for linear in self.fused_linears)

    @property
    def is_stale(self) -> bool:
        """Whether the model was moved or cast since, which leaves stacked weights and tables behind."""
        return self._built_for != (self.dtype, self.device)


def rope_table(rotary: Any, like: Tensor, *layer_type: str) -> RopeTable:
    """Return the table of a transformers module for rotary embeddings, in the dtype and on the device of `like`."""

    def cos_sin(positions: Int[Tensor, " n"]) -> CosSin:
        cos, sin = rotary(like, positions[None], *layer_type)
        return cos[0], sin[0]

    return cos_sin


def _rope_types(config: Any) -> list[str]:
    """Return the types of a configuration's rotary embeddings; some have one per kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return [str(kind.get("rope_type", "default")) for kind in nested or [parameters]]
