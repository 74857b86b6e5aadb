"""Gemma 2 and 3: both updates of a block are normalised, the embedding is scaled, scores and logits may be capped, windows alternate."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from clusterlora.engine.families.block import ACTIVATIONS, Block
from clusterlora.engine.families.decoder import Decoder, rope_table
from clusterlora.engine.families.llama import heads_of
from clusterlora.engine.fused_linear import fused
from clusterlora.engine.norms import RMSNorm
from clusterlora.engine.rope import RopeTable


class Gemma(Decoder):
    """Source: Gemma Team 2024, Gemma 2 (arXiv 2408.00118), and 2025, Gemma 3 (arXiv 2503.19786)."""

    architectures = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")

    def __init__(self, model: Any) -> None:
        """See `Decoder`."""
        super().__init__(model)
        self._embed_scale: Tensor = model.get_input_embeddings().embed_scale.to(self.dtype)

    @classmethod
    def activation_of(cls, config: Any) -> str:
        """See `Decoder`."""
        return config.hidden_activation

    def block_of(self, model: Any, number: int) -> Block:
        """See `Decoder`."""
        layer, path = model.model.layers[number], f"model.layers.{number}"
        attention, mlp = layer.self_attn, layer.mlp
        # The attention of Gemma 3 has the setting as well, and does not use it.
        softcap = attention.attn_logit_softcapping if type(model).__name__ == "Gemma2ForCausalLM" else None
        return Block(
            norm_in=_norm(layer.input_layernorm),
            qkv=fused(f"{path}.self_attn", attention, "q_proj", "k_proj", "v_proj"),
            heads=heads_of(model.config, attention, softcap=softcap),
            out=fused(f"{path}.self_attn", attention, "o_proj"),
            norm_mid=_norm(layer.pre_feedforward_layernorm),
            up=fused(f"{path}.mlp", mlp, "gate_proj", "up_proj"),
            down=fused(f"{path}.mlp", mlp, "down_proj"),
            activation=ACTIVATIONS[self.activation_of(model.config)],
            rope=_layer_types(model).index(attention.layer_type) if _has_tables_by_layer(model) else 0,
            norm_q=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            norm_k=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
            norm_attended=_norm(layer.post_attention_layernorm),
            norm_mlp=_norm(layer.post_feedforward_layernorm),
        )

    def norm_out_of(self, model: Any) -> RMSNorm:
        """See `Decoder`."""
        return _norm(model.model.norm)

    def rope_tables_of(self, model: Any) -> tuple[RopeTable, ...]:
        """See `Decoder`; Gemma 3 has one table for layers with a window and one for those without."""
        if not _has_tables_by_layer(model):
            return super().rope_tables_of(model)

        return tuple(rope_table(model.model.rotary_emb, self.embedding[:1], layer_type) for layer_type in _layer_types(model))

    def embed(self, ids: Int[Tensor, " N"], position: Int[Tensor, " N"]) -> Float[Tensor, "N d"]:  # noqa: ARG002
        """See `Decoder`."""
        return functional.embedding(ids, self.embedding) * self._embed_scale


def _norm(module: Any) -> RMSNorm:
    """Return a normalisation whose module stores its weight minus one."""
    weight = module.weight.detach()
    return RMSNorm(1 + weight.to(torch.promote_types(weight.dtype, torch.float32)), module.eps, wide_weight=True)


def _layer_types(model: Any) -> list[str]:
    return sorted(set(model.config.layer_types))


def _has_tables_by_layer(model: Any) -> bool:
    return any(isinstance(value, dict) for value in model.config.rope_parameters.values())
