"""Whether an adapter that was trained elsewhere means here what it means in PEFT: its settings, its tensors, its base, its logits."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clusterlora.adapters.weights import weight_files
from clusterlora.engine.base import BaseModel
from clusterlora.engine.stacked import StackedModel, Weights, read_adapter
from clusterlora.errors import BadData

_UNSUPPORTED = {
    "use_dora": "train it again without DoRA",
    "use_qalora": "train it again without QALoRA",
    "rank_pattern": "train it again with one rank for all layers",
    "alpha_pattern": "train it again with one alpha for all layers",
    "modules_to_save": "it replaces whole layers of the base; train it again without modules_to_save",
    "lora_bias": "train it again with lora_bias=False",
    "layer_replication": "it changes the base; train it again without layer_replication",
    "trainable_token_indices": "it changes the embedding of tokens; train it again without trainable_token_indices",
    "target_parameters": "it changes parameters that are no layers; train it again with target_modules alone",
    "alora_invocation_tokens": "it is active for a part of the prompt only; train it again without them",
}
"""Settings of a PEFT LoRA that change its answers and that the stack does not compute, with what to do about each."""
_CONVERTED = ("pissa", "olora", "corda", "eva", "loftq")
"""Initialisations that may change the base's weights; PEFT converts such an adapter to a plain one when it saves it."""
_PROMPTS = ("The quick brown fox", "Please turn on the light in the kitchen.", "1 2 3 4")
_SHARE = 0.02
"""By which share of what the adapter changes its logits may differ from PEFT's; a wrong reading differs by about all of it."""


def check_imported(folder: Path, base: BaseModel, *, any_base: bool) -> None:
    """Check that a PEFT folder is a plain LoRA of this base that answers as in PEFT.

    Args:
        any_base: do not ask whether the folder names this base, only whether its layers fit.

    Raises:
        BadData: names the folder, what is wrong, and what to do about it.
    """
    config = _read_config(folder)
    _check_settings(folder, config)
    _check_tensors(folder, config)
    if not any_base:
        _check_base(folder, config, base)
    stacked = StackedModel(base.model)
    try:
        stacked.load([Weights(read_adapter(folder))])
        ours = _logits(base, stacked)
    except BadData as problem:
        made_for = config.get("base_model_name_or_path")
        raise BadData(
            f"{folder}: does not fit base model {base.name!r} ({problem}); it was made for {made_for!r}; give that as --base-model"
        ) from problem
    finally:
        stacked.close()
    _compare_with_peft(folder, base, ours)


def _read_config(folder: Path) -> Mapping[str, Any]:
    weight_files(folder)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise BadData(f"{folder}: adapter_config.json holds a {type(config).__name__}, not PEFT's settings; save it with save_pretrained")
    return config


def _check_settings(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise BadData(
            f"{folder}: is {config.get('peft_type')!r}, not LORA; only LoRA adapters can be imported, the others are trained here"
        )
    for name, fix in _UNSUPPORTED.items():
        if config.get(name):
            raise BadData(f"{folder}: has {name}={config[name]!r:.60}; {fix}")
    if config.get("bias", "none") != "none":
        raise BadData(f"{folder}: has bias={config['bias']!r}; it changes biases of the base; train it again with bias='none'")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CONVERTED):
        raise BadData(
            f"{folder}: starts from {start} and belongs to a changed base; save it as a plain LoRA with "
            "save_pretrained(folder, path_initial_model_for_weight_conversion=...)"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise BadData(f"{folder}: has r={rank!r}; a rank is a whole number of at least 1")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise BadData(f"{folder}: has lora_alpha={alpha!r}; it must be a number")


def _check_tensors(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise BadData unless every tensor is a finite LoRA factor of the rank in the settings."""
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, OSError) as error:
        raise BadData(f"{folder}: adapter_model.safetensors cannot be read ({error}); save it with save_pretrained") from error
    if not tensors:
        raise BadData(f"{folder}: adapter_model.safetensors holds no tensor; save it with save_pretrained")
    for name, tensor in tensors.items():
        side = next((side for side in ("lora_A", "lora_B") if name.endswith(f".{side}.weight")), None)
        if side is None:
            raise BadData(f"{folder}: tensor {name} is no factor of a linear layer (embeddings and whole layers cannot be imported)")
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise BadData(
                f"{folder}: tensor {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not a matrix of floating-point numbers"
            )
        if not tensor.isfinite().all():
            raise BadData(f"{folder}: tensor {name} holds NaN or infinity; its training diverged")
        rank = tensor.shape[0 if side == "lora_A" else 1]
        if rank != config["r"]:
            raise BadData(
                f"{folder}: tensor {name} has rank {rank}, but adapter_config.json says r={config['r']}; the two do not belong together"
            )


def _check_base(folder: Path, config: Mapping[str, Any], base: BaseModel) -> None:
    """Raise BadData if the folder names another base. Only the last part of a path or hub id counts: folders move."""
    named = config.get("base_model_name_or_path")
    if named and _last_part(named) != _last_part(base.name):
        raise BadData(
            f"{folder}: was made for base model {named!r}, and the study's is {base.name!r}; give --base-model {named}, "
            "or --same-base if the two hold the same weights"
        )
    revision = config.get("revision")
    if revision and revision != "main" and base.revision and not base.revision.startswith(revision):
        raise BadData(
            f"{folder}: was made for revision {revision} of {named!r}, and the base here is {base.revision}; "
            "give --same-base if the two hold the same weights"
        )


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def _compare_with_peft(folder: Path, base: BaseModel, ours: list[Float[Tensor, "_T V"]]) -> None:
    """Raise BadData if PEFT computes other logits with this adapter."""
    from peft import PeftModel

    plain = _logits(base)
    peft_model = PeftModel.from_pretrained(base.model, str(folder))
    try:
        theirs = _logits(base)
    finally:
        peft_model.unload()
    change = max(float((a - b).abs().max()) for a, b in zip(theirs, plain, strict=True))
    noise = 64 * torch.finfo(base.model.dtype).eps * max(float(logits.abs().max()) for logits in plain)
    difference = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    if difference > _SHARE * change + noise:
        raise BadData(
            f"{folder}: its logits differ from PEFT's by {difference:.3g}, where the adapter changes them by {change:.3g}; "
            "what it holds besides plain LoRA is not supported"
        )


@torch.inference_mode()
def _logits(base: BaseModel, stacked: StackedModel | None = None) -> list[Float[Tensor, "_T V"]]:
    """Return the logits of three prompts, with the adapter in slot 1 of `stacked` if there is one."""
    return [_of_prompt(base, ids, stacked).double() for ids in _prompt_ids(base)]


def _prompt_ids(base: BaseModel) -> Iterator[Int[Tensor, "1 T"]]:
    for prompt in _PROMPTS:
        yield torch.tensor([base.tokenizer(prompt, add_special_tokens=False).input_ids], device=base.model.device)


def _of_prompt(base: BaseModel, ids: Int[Tensor, "1 T"], stacked: StackedModel | None) -> Float[Tensor, "T V"]:
    if stacked is None:
        return base.model(input_ids=ids, use_cache=False).logits[0]
    with stacked.rows(torch.ones(1, dtype=torch.long, device=ids.device)):
        return base.model(input_ids=ids, use_cache=False).logits[0]
