"""LoRA: y = W x + s B A x with s = alpha / r. Source: Hu et al. 2021 (arXiv 2106.09685)."""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from clusterlora.engine.kinds.kind import AdapterKind, SlotRequest, Slots
from clusterlora.errors import BadSettings
from clusterlora.recipe import Recipe

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor

    from clusterlora.engine.backends import Backend
    from clusterlora.engine.base import BaseModel
    from clusterlora.engine.stacked import Weights


class Lora(AdapterKind):
    """Factors of every target module in slots: `engine.stacked_lora`."""

    name = "lora"
    is_additive = True

    def peft_config(self, base: "BaseModel", recipe: Recipe) -> "LoraConfig":
        """See `AdapterKind`."""
        from clusterlora.engine.peft_folder import lora_config
        from clusterlora.models.linear_layers import is_transposed

        return lora_config(recipe, base=base.name, fan_in_fan_out=is_transposed(base.model, recipe.target_modules))

    def describes(self, config: Mapping[str, Any]) -> bool:
        """See `AdapterKind`."""
        return variant_of_lora(config) == {}

    def initialise(self, model: "PeftModel", recipe: Recipe) -> None:
        """See `AdapterKind`."""
        set_initial_a(model, recipe)

    def weights_of(self, config: Mapping[str, Any], tensors: "Mapping[str, Tensor]", *, name: str) -> "Weights | None":
        """See `AdapterKind`."""
        from clusterlora.engine.stacked import Weights, factors_of

        # PEFT also adapts embeddings and experts, which have no slots.
        has_no_slots = any("lora_embedding_" in one or ".experts." in one for one in tensors)
        return None if has_no_slots else Weights(factors_of(config, tensors, name=name))

    def slot_group(self, recipe: Recipe) -> Hashable | None:
        """See `AdapterKind`."""
        return "lora", recipe.target_modules

    def scale(self, recipe: Recipe) -> float:
        """See `AdapterKind`."""
        return recipe.alpha / recipe.rank

    def why_not_stacked(self, base: "BaseModel", recipe: Recipe) -> str | None:
        """See `AdapterKind`."""
        from clusterlora.engine.stacked_lora import targeted_layers
        from clusterlora.models.targets import block_weights, names_experts

        if names_experts(recipe.target_modules, block_weights(base.model)):
            return "PEFT alone adapts the weights of experts"
        try:
            targeted_layers(base.model, recipe.target_modules)
        except BadSettings as error:
            return str(error)
        return None

    def n_parameters(self, base: "BaseModel", recipe: Recipe) -> int:
        """See `AdapterKind`."""
        from clusterlora.engine.stacked_lora import targeted_layers

        layers = targeted_layers(base.model, recipe.target_modules).values()
        return recipe.rank * sum(layer.d_in + layer.d_out for layer in layers)

    def slots(self, base: "BaseModel", request: SlotRequest) -> "tuple[Slots, Backend]":
        """See `AdapterKind`."""
        from clusterlora.engine.backends import lora_backend

        return lora_backend(
            base,
            request.recipe,
            n_slots=request.n_slots,
            rank=request.rank,
            probe=request.probe,
            frozen_adapters=request.frozen_adapters,
            checkpointing=request.checkpointing,
        )


def variant_of_lora(config: Mapping[str, Any]) -> dict[str, bool] | None:
    """Return the variants of LoRA that an `adapter_config.json` names; None where it is no LoRA."""
    if config.get("peft_type") != "LORA":
        return None
    return {name: True for name in ("use_rslora", "use_dora") if config.get(name)}


def set_initial_a(model: "PeftModel", recipe: Recipe) -> None:
    """Set the A of a PEFT model's new adapter to the draw that all adapters of one rank and seed share."""
    from clusterlora.engine.job import initial_a

    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            layer = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            parameter.data.copy_(initial_a(layer, rank=parameter.shape[0], d_in=parameter.shape[1], seed=recipe.seed))
