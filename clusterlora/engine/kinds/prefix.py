"""Prefix tuning: learnt keys and values of `rank` virtual tokens before every sequence, in every layer; they start as zeros.

Alpha, dropout and target modules do not apply. Source: Li & Liang 2021 (arXiv 2101.00190), without its reparametrisation, like PEFT.
"""

import logging
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from clusterlora.engine.kinds.kind import AdapterKind, SlotRequest, Slots
from clusterlora.recipe import Recipe

if TYPE_CHECKING:
    from peft import PrefixTuningConfig
    from torch import Tensor

    from clusterlora.engine.backends import Backend
    from clusterlora.engine.base import BaseModel
    from clusterlora.engine.stacked import Weights

log = logging.getLogger(__name__)


class Prefix(AdapterKind):
    """Keys and values in slots: `engine.stacked_prefix`."""

    name = "prefix"

    def peft_config(self, base: "BaseModel", recipe: Recipe) -> "PrefixTuningConfig":
        """See `AdapterKind`."""
        from peft import PrefixTuningConfig

        from clusterlora.engine.stacked_prefix import cache_shape

        n_layers, n_heads, head_dim = cache_shape(base.model)
        return PrefixTuningConfig(
            num_virtual_tokens=recipe.rank,
            num_layers=n_layers,
            num_attention_heads=n_heads,
            token_dim=n_heads * head_dim,
            num_transformer_submodules=1,
            task_type="CAUSAL_LM",
            base_model_name_or_path=base.name,
        )

    def describes(self, config: Mapping[str, Any]) -> bool:
        """See `AdapterKind`."""
        return config.get("peft_type") == "PREFIX_TUNING"

    def weights_of(self, config: Mapping[str, Any], tensors: "Mapping[str, Tensor]", *, name: str) -> "Weights":  # noqa: ARG002
        """See `AdapterKind`."""
        from clusterlora.engine.stacked import Weights, prefix_of

        return Weights(prefix=prefix_of(config, tensors))

    def slot_group(self, recipe: Recipe) -> Hashable | None:
        """See `AdapterKind`."""
        return "prefix", recipe.rank

    def scale(self, recipe: Recipe) -> float:  # noqa: ARG002
        """See `AdapterKind`."""
        return 1.0

    def why_not_stacked(self, base: "BaseModel", recipe: Recipe) -> str | None:  # noqa: ARG002
        """See `AdapterKind`."""
        return None

    def n_parameters(self, base: "BaseModel", recipe: Recipe) -> int:
        """See `AdapterKind`."""
        from clusterlora.engine.stacked_prefix import cache_shape

        n_layers, n_heads, head_dim = cache_shape(base.model)
        return recipe.rank * 2 * n_layers * n_heads * head_dim

    def slots(self, base: "BaseModel", request: SlotRequest) -> "tuple[Slots, Backend]":
        """See `AdapterKind`."""
        from clusterlora.engine.backends import prefix_backend

        if request.checkpointing:
            log.warning("checkpointing is left out for prefixes: activations are kept")
        return prefix_backend(base, n_slots=request.n_slots, n_virtual=request.rank)
