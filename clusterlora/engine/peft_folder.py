"""Adapters on disk as PEFT folders."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clusterlora.engine.stacked import Factors
from clusterlora.recipe import Recipe

if TYPE_CHECKING:
    from peft import LoraConfig

_PREFIX = "base_model.model."


def lora_config(recipe: Recipe, *, base: str, fan_in_fan_out: bool = False) -> "LoraConfig":
    """Return the PEFT configuration of a recipe.

    Args:
        fan_in_fan_out: whether the base stores the weights of these layers transposed, as GPT-2 does.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # pyright: ignore[reportArgumentType]  (any number works; PEFT says int)
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.target_modules),
        fan_in_fan_out=fan_in_fan_out,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )


def write_peft_folder(
    folder: Path, tensors: Mapping[str, torch.Tensor], recipe: Recipe, *, base: str, fan_in_fan_out: bool = False
) -> None:
    """Write a LoRA as a PEFT folder; tensors are named `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = lora_config(recipe, base=base, fan_in_fan_out=fan_in_fan_out)
    config.inference_mode = True
    config.save_pretrained(str(folder))
    prefixed = {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(prefixed, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def write_prefix_folder(folder: Path, tensors: Mapping[str, torch.Tensor], cache_shape: tuple[int, int, int], *, base: str) -> None:
    """Write a prefix as a PEFT folder; `cache_shape` is (layers, key-value heads, dimension of a head)."""
    from peft import PrefixTuningConfig
    from safetensors.torch import save_file

    n_layers, n_heads, head_dim = cache_shape
    (prefix,) = tensors.values()
    folder.mkdir(parents=True, exist_ok=True)
    config = PrefixTuningConfig(
        num_virtual_tokens=len(prefix),
        num_layers=n_layers,
        num_attention_heads=n_heads,
        token_dim=n_heads * head_dim,
        num_transformer_submodules=1,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    config.inference_mode = True
    config.save_pretrained(str(folder))
    saved = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(saved, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def write_factors(folder: Path, factors: Factors, recipe: Recipe, *, base: str) -> None:
    """Write factors (A, scaled B) of the recipe's rank as a PEFT folder; alpha is the rank, so PEFT's scale is 1."""
    tensors = {f"{layer}.lora_A.weight": a for layer, (a, _) in factors.items()}
    tensors |= {f"{layer}.lora_B.weight": b for layer, (_, b) in factors.items()}
    write_peft_folder(folder, tensors, replace(recipe, alpha=recipe.rank), base=base)


def read_peft_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return a PEFT folder's tensors, named as in `write_peft_folder`."""
    from safetensors.torch import load_file

    return {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
