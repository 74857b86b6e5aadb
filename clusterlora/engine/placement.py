"""Where a base is held: on one device, or its layers spread over several, between which accelerate's hooks move what they compute."""

from typing import TYPE_CHECKING

from clusterlora.errors import BadSettings
from clusterlora.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


def devices_of(model: "nn.Module") -> "tuple[torch.device, ...]":
    """Return the devices that hold a model's weights, in the order of its layers."""
    return tuple(dict.fromkeys(parameter.device for parameter in model.parameters()))


def is_spread(model: "nn.Module") -> bool:
    """Return whether a model's weights are on more than one device."""
    return len(devices_of(model)) > 1


def refuse_unusable_devices(model: "nn.Module") -> None:
    """Check that a model computes where its weights are. Raises BadSettings."""
    devices = devices_of(model)
    names = ", ".join(map(str, devices))
    if len(devices) > 1 and any(device.type == "meta" for device in devices):
        raise BadSettings(f"base is on {names}: some of its weights are offloaded or were never loaded; load it onto GPUs or the CPU alone")
    if len(devices) > 1 and not has_hook(model):
        raise BadSettings(
            f"base is on {names}, with nothing that moves tensors between them; put all of it on one GPU or on the CPU, for example "
            "model.to('cpu'), or load it with device_map='auto'"
        )
    if any(device.type not in ("cpu", "cuda") for device in devices):
        raise BadSettings(f"base is on {names}; put all of it on one GPU or on the CPU, for example model.to('cpu')")


def refuse_spread_prefix(model: "nn.Module") -> None:
    """Check that a model can have prefixes, whose keys and values are all on its first device. Raises BadSettings."""
    if is_spread(model):
        raise BadSettings(
            f"adapters of kind prefix need a base on one device, and this one is on {', '.join(map(str, devices_of(model)))}; "
            "use another kind, or model.device_map=none"
        )


def refuse_spread_head(model: "PreTrainedModel", recipe: Recipe) -> None:
    """Check that PEFT can adapt what a recipe names: of a spread model, not the output layer, which may read from another device.

    Raises:
        BadSettings: the output layer is among the target modules.
    """
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), "").rpartition(".")[2]
    if is_spread(model) and head in recipe.target_modules:
        raise BadSettings(
            f"adapters of kind {recipe.kind} on {head} need a base on one device, and this one is on "
            f"{', '.join(map(str, devices_of(model)))}; use kind lora, or leave {head} out of recipe.target_modules"
        )


def has_hook(module: "nn.Module") -> bool:
    """Return whether accelerate moves what a module reads."""
    return "_old_forward" in module.__dict__


def own_forward(module: "nn.Module") -> str:
    """Return the attribute of a module that computes what is its own: a hook's part, which moves what it reads, comes before that."""
    return "_old_forward" if has_hook(module) else "forward"
