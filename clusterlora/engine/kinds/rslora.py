"""Rank-stabilised LoRA: s = alpha / sqrt(r), so that larger ranks do not learn slower. Source: Kalajdzievski 2023 (arXiv 2312.03732)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clusterlora.engine.kinds.lora import Lora, variant_of_lora
from clusterlora.recipe import Recipe

if TYPE_CHECKING:
    from peft import LoraConfig

    from clusterlora.engine.base import BaseModel


class RankStabilisedLora(Lora):
    """LoRA with another scale; both share slots."""

    name = "rslora"

    def peft_config(self, base: "BaseModel", recipe: Recipe) -> "LoraConfig":
        """See `AdapterKind`."""
        from clusterlora.engine.peft_folder import lora_config
        from clusterlora.models.linear_layers import is_transposed

        return lora_config(recipe, base=base.name, use_rslora=True, fan_in_fan_out=is_transposed(base.model, recipe.target_modules))

    def describes(self, config: Mapping[str, Any]) -> bool:
        """See `AdapterKind`."""
        return variant_of_lora(config) == {"use_rslora": True}

    def scale(self, recipe: Recipe) -> float:
        """See `AdapterKind`."""
        return recipe.alpha / recipe.rank**0.5
