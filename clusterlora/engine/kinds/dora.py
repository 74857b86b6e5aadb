"""DoRA: y = m / |W + s B A| * (W x + s B A x), with the norm of each output's weights a constant in the backward pass.

The norm needs the sum W + s B A of every adapter, a matrix as large as the base's, so adapters do not share passes.
Source: Liu et al. 2024 (arXiv 2402.09353).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clusterlora.engine.kinds.kind import AdapterKind
from clusterlora.engine.kinds.lora import set_initial_a, variant_of_lora
from clusterlora.recipe import Recipe

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from clusterlora.engine.base import BaseModel


class Dora(AdapterKind):
    """Through PEFT, from the same initial A as LoRA; m starts as the norm of the base's weights."""

    name = "dora"

    def peft_config(self, base: "BaseModel", recipe: Recipe) -> "LoraConfig":
        """See `AdapterKind`."""
        from clusterlora.engine.peft_folder import lora_config
        from clusterlora.models.linear_layers import is_transposed

        return lora_config(recipe, base=base.name, use_dora=True, fan_in_fan_out=is_transposed(base.model, recipe.target_modules))

    def describes(self, config: Mapping[str, Any]) -> bool:
        """See `AdapterKind`."""
        variant = variant_of_lora(config)
        return variant is not None and "use_dora" in variant

    def initialise(self, model: "PeftModel", recipe: Recipe) -> None:
        """See `AdapterKind`."""
        set_initial_a(model, recipe)
