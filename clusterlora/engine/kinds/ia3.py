"""IA3: outputs of attention projections, and inputs of the MLP's last projection, times a learnt vector that starts as ones.

Rank, alpha and dropout do not apply. Source: Liu et al. 2022 (arXiv 2205.05638).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clusterlora.engine.kinds.kind import AdapterKind
from clusterlora.recipe import Recipe

if TYPE_CHECKING:
    from peft import IA3Config

    from clusterlora.engine.base import BaseModel

_SCALES_INPUT = ("down_proj", "fc2", "fc_out", "mlp.c_proj", "c_proj", "dense_4h_to_h", "w2")
"""Names of projections out of the MLP: their inputs are scaled, as in the paper; of all others the outputs."""


class Ia3(AdapterKind):
    """Through PEFT."""

    name = "ia3"

    def peft_config(self, base: "BaseModel", recipe: Recipe) -> "IA3Config":
        """See `AdapterKind`."""
        from peft import IA3Config

        from clusterlora.models.linear_layers import is_transposed

        targets = _unambiguous(base, recipe.target_modules)
        return IA3Config(
            fan_in_fan_out=is_transposed(base.model, recipe.target_modules),
            target_modules=targets,
            feedforward_modules=[name for name in targets if name in _SCALES_INPUT],
            task_type="CAUSAL_LM",
            base_model_name_or_path=base.name,
        )

    def describes(self, config: Mapping[str, Any]) -> bool:
        """See `AdapterKind`."""
        return config.get("peft_type") == "IA3"


def _unambiguous(base: "BaseModel", names: Sequence[str]) -> list[str]:
    """Return the names of layers, with that of the module around them where it is not the same everywhere.

    GPT-2 calls two projections c_proj: that of attention, attn.c_proj, is not the one out of the MLP, mlp.c_proj.
    """
    paths = [path.split(".") for path, _ in base.model.named_modules()]
    around = {name: sorted({path[-2] for path in paths if len(path) > 1 and path[-1] == name}) for name in names}
    return [full for name in names for full in ([name] if len(around[name]) < 2 else [f"{parent}.{name}" for parent in around[name]])]
