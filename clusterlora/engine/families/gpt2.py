"""GPT-2: LayerNorm, learnt positions, biases, weights stored transposed, and no gate."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from clusterlora.engine.attention import Heads
from clusterlora.engine.families.block import ACTIVATIONS, Block
from clusterlora.engine.families.decoder import Decoder
from clusterlora.engine.fused_linear import fused
from clusterlora.engine.norms import LayerNorm
from clusterlora.engine.rope import RopeTable


class GPT2(Decoder):
    """Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners."""

    architectures = ("GPT2LMHeadModel",)

    def __init__(self, model: Any) -> None:
        """See `Decoder`."""
        super().__init__(model)
        self._positions: Tensor = model.transformer.wpe.weight

    @classmethod
    def unsupported(cls, model: Any) -> str | None:
        """See `Decoder`."""
        return "it has cross-attention" if model.config.add_cross_attention else super().unsupported(model)

    @classmethod
    def layers_of(cls, model: Any) -> nn.ModuleList:
        """See `Decoder`."""
        return model.transformer.h

    @classmethod
    def activation_of(cls, config: Any) -> str:
        """See `Decoder`."""
        return config.activation_function

    def block_of(self, model: Any, number: int) -> Block:
        """See `Decoder`."""
        layer, path = model.transformer.h[number], f"transformer.h.{number}"
        attention, n = layer.attn, model.config.num_attention_heads
        dim, width = attention.head_dim, model.config.hidden_size
        return Block(
            norm_in=_norm(layer.ln_1),
            qkv=fused(f"{path}.attn", attention, "c_attn", parts=(width, width, width)),
            heads=Heads(n, n, dim, scale=None if attention.scaling == dim**-0.5 else attention.scaling),
            out=fused(f"{path}.attn", attention, "c_proj"),
            norm_mid=_norm(layer.ln_2),
            up=fused(f"{path}.mlp", layer.mlp, "c_fc"),
            down=fused(f"{path}.mlp", layer.mlp, "c_proj"),
            activation=ACTIVATIONS[self.activation_of(model.config)],
            rope=None,
        )

    def norm_out_of(self, model: Any) -> LayerNorm:
        """See `Decoder`."""
        return _norm(model.transformer.ln_f)

    def rope_tables_of(self, model: Any) -> tuple[RopeTable, ...]:  # noqa: ARG002
        """See `Decoder`: none."""
        return ()

    def embed(self, ids: Int[Tensor, " N"], position: Int[Tensor, " N"]) -> Float[Tensor, "N d"]:
        """See `Decoder`; padding may lie beyond the last position, and nothing reads it."""
        positions = functional.embedding(position.clamp(max=len(self._positions) - 1), self._positions)
        return functional.embedding(ids, self.embedding) + positions


def _norm(module: nn.LayerNorm) -> LayerNorm:
    return LayerNorm(module.weight, module.bias, module.eps)
