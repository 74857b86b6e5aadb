"""Phi-3: Llama with one layer for queries, keys and values and one for gate and up, and heads that may be rotated in part."""

from typing import Any

from clusterlora.engine.families.llama import Llama
from clusterlora.engine.fused_linear import FusedLinear, fused


class Phi3(Llama):
    """Source: Abdin et al. 2024 (arXiv 2404.14219)."""

    architectures = ("Phi3ForCausalLM",)

    def qkv_of(self, attention: Any, path: str) -> FusedLinear:
        """See `Llama`."""
        config, dim = attention.config, attention.head_dim
        n_kv = config.num_key_value_heads * dim
        return fused(path, attention, "qkv_proj", parts=(config.num_attention_heads * dim, n_kv, n_kv))

    def up_of(self, mlp: Any, path: str) -> FusedLinear:
        """See `Llama`."""
        n = mlp.config.intermediate_size
        return fused(path, mlp, "gate_up_proj", parts=(n, n))
