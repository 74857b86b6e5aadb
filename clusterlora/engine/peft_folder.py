"""Adapters on disk as PEFT folders."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clusterlora.engine.stacked import Factors
from clusterlora.recipe import Recipe

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig

_PREFIX = "base_model.model."
_OF_NUMPY = (torch.float32, torch.float64)
"""Dtypes that numpy has as well."""
_METADATA = {"format": "pt"}
_BUFFER_BYTES = 1 << 20


def lora_config(
    recipe: Recipe, *, base: str, use_rslora: bool = False, use_dora: bool = False, fan_in_fan_out: bool = False
) -> "LoraConfig":
    """Return PEFT's configuration of LoRA by a recipe, or of a variant of it.

    Args:
        fan_in_fan_out: whether the base stores the weights of these layers transposed, as GPT-2 does.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # pyrefly: ignore[bad-argument-type]  (any number works; PEFT says int)
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.target_modules),
        fan_in_fan_out=fan_in_fan_out,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        use_rslora=use_rslora,
        use_dora=use_dora,
    )


def write_peft_folder(
    folder: Path, tensors: Mapping[str, torch.Tensor], recipe: Recipe, *, base: str, fan_in_fan_out: bool = False
) -> None:
    """Write a LoRA as a PEFT folder; tensors are named `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
    write_adapter(folder, tensors, lora_config(recipe, base=base, fan_in_fan_out=fan_in_fan_out))


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], config: "PeftConfig") -> None:
    """Write an adapter as a PEFT folder; tensors are named by layer, or as PEFT names what precedes a prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    prefix = "" if config.is_prompt_learning else _PREFIX
    _save({prefix + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def _save(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write tensors on the CPU as safetensors does: adapters of a study differ in their numbers alone, so it lays out one for all."""
    if not all(tensor.dtype in _OF_NUMPY for tensor in tensors.values()):
        from safetensors.torch import save_file

        save_file(dict(tensors), file, metadata=_METADATA)
        return
    header, names = _layout(tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()))
    with file.open("wb", buffering=_BUFFER_BYTES) as out:
        out.write(header)
        for name in names:
            out.write(tensors[name].numpy().data)


@lru_cache(maxsize=4)
def _layout(tensors: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]) -> tuple[bytes, list[str]]:
    """Return what a file of such tensors begins with, and their names in the order in which their numbers follow."""
    from safetensors.numpy import save

    content = save({name: torch.zeros(shape, dtype=dtype).numpy() for name, shape, dtype in tensors}, metadata=_METADATA)
    length = int.from_bytes(content[:8], "little")
    described = {name: one["data_offsets"] for name, one in json.loads(content[8 : 8 + length]).items() if name != "__metadata__"}
    return content[: 8 + length], sorted(described, key=described.__getitem__)


def write_factors(folder: Path, factors: Factors, recipe: Recipe, *, base: str, configs: Iterable[Mapping[str, Any]]) -> None:
    """Write factors (A, scaled B) of the recipe's rank as a PEFT folder; alpha is the rank, so PEFT's scale is 1.

    Args:
        configs: PEFT's configurations of what they were made of; whether the base stores weights transposed is as these say.
    """
    tensors = {f"{layer}.lora_A.weight": a for layer, (a, _) in factors.items()}
    tensors |= {f"{layer}.lora_B.weight": b for layer, (_, b) in factors.items()}
    transposed = any(config.get("fan_in_fan_out") for config in configs)
    write_peft_folder(folder, tensors, replace(recipe, kind="lora", alpha=recipe.rank), base=base, fan_in_fan_out=transposed)


def read_peft_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return a PEFT folder's tensors, named as in `write_adapter`."""
    from safetensors.torch import load_file

    return {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(folder / "adapter_model.safetensors").items()}


def remove_adapters(model: torch.nn.Module) -> None:
    """Restore the layers of a model whose adapter PEFT has added in part."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
