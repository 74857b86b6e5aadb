"""Llama and the models that differ from it in biases, normalised heads or a sliding window: Qwen2, Qwen3, Mistral."""

from typing import Any

from clusterlora.engine.attention import Heads
from clusterlora.engine.families.block import ACTIVATIONS, Block
from clusterlora.engine.families.decoder import Decoder
from clusterlora.engine.fused_linear import FusedLinear, fused
from clusterlora.engine.norms import Norm, RMSNorm
from clusterlora.models.checks import declared


class Llama(Decoder):
    """Source: Touvron et al. 2023 (arXiv 2302.13971); Qwen Team 2025, Qwen3 (arXiv 2505.09388); Jiang et al. 2023 (arXiv 2310.06825)."""

    architectures = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM")

    def block_of(self, model: Any, number: int) -> Block:
        """See `Decoder`."""
        layer, path = model.model.layers[number], f"model.layers.{number}"
        attention = layer.self_attn
        return Block(
            norm_in=self.norm_of(layer.input_layernorm),
            qkv=self.qkv_of(attention, f"{path}.self_attn"),
            heads=heads_of(model.config, attention),
            out=fused(f"{path}.self_attn", attention, "o_proj"),
            norm_mid=self.norm_of(layer.post_attention_layernorm),
            up=self.up_of(layer.mlp, f"{path}.mlp"),
            down=self.down_of(layer.mlp, f"{path}.mlp"),
            activation=ACTIVATIONS[self.activation_of(model.config)],
            norm_q=self.norm_of(attention.q_norm) if hasattr(attention, "q_norm") else None,
            norm_k=self.norm_of(attention.k_norm) if hasattr(attention, "k_norm") else None,
        )

    def qkv_of(self, attention: Any, path: str) -> FusedLinear:
        """Return the projections to queries, keys and values."""
        return fused(path, attention, "q_proj", "k_proj", "v_proj")

    def up_of(self, mlp: Any, path: str) -> FusedLinear:
        """Return the projections into the multilayer perceptron: gate and up, or up alone."""
        return fused(path, mlp, "gate_proj", "up_proj")

    def down_of(self, mlp: Any, path: str) -> FusedLinear:
        """Return the projection out of the multilayer perceptron."""
        return fused(path, mlp, "down_proj")

    def norm_of(self, module: Any) -> Norm:
        """Return a normalisation."""
        return RMSNorm(module.weight, module.variance_epsilon)

    def norm_out_of(self, model: Any) -> Norm:
        """See `Decoder`."""
        return self.norm_of(model.model.norm)


def heads_of(config: Any, attention: Any, *, softcap: float | None = None) -> Heads:
    """Return the heads of an attention module; a window that its class leaves to the configuration is that of all layers."""
    window = getattr(attention, "sliding_window", None) if hasattr(attention, "layer_type") else declared(config, "sliding_window")
    dim = attention.head_dim
    return Heads(
        n=config.num_attention_heads,
        n_kv=config.num_key_value_heads,
        dim=dim,
        scale=None if attention.scaling == dim**-0.5 else attention.scaling,
        window=window,
        softcap=softcap,
    )
