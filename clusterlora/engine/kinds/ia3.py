"""IA3: outputs of attention projections, and inputs of the MLP's last projection, times a learnt vector that starts as ones.

Rank, alpha and dropout do not apply. Source: Liu et al. 2022 (arXiv 2205.05638).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clusterlora.engine.kinds.kind import AdapterKind
from clusterlora.recipe import Recipe

if TYPE_CHECKING:
    from peft import IA3Config

    from clusterlora.engine.base import BaseModel

_SCALES_INPUT = ("down_proj", "fc2", "fc_out", "c_proj", "dense_4h_to_h", "w2")
"""Names of projections out of the MLP: their inputs are scaled, as in the paper; of all others the outputs."""


class Ia3(AdapterKind):
    """Through PEFT."""

    name = "ia3"

    def peft_config(self, base: "BaseModel", recipe: Recipe) -> "IA3Config":
        """See `AdapterKind`."""
        from peft import IA3Config

        from clusterlora.engine.linear_layers import is_transposed

        return IA3Config(
            fan_in_fan_out=is_transposed(base.model, recipe.target_modules),
            target_modules=list(recipe.target_modules),
            feedforward_modules=[name for name in recipe.target_modules if name in _SCALES_INPUT],
            task_type="CAUSAL_LM",
            base_model_name_or_path=base.name,
        )

    def describes(self, config: Mapping[str, Any]) -> bool:
        """See `AdapterKind`."""
        return config.get("peft_type") == "IA3"
