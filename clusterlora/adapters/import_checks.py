"""Whether an adapter that was trained elsewhere means here what it means in PEFT: its settings, its tensors, its base, its logits."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clusterlora.adapters.weights import weight_files
from clusterlora.engine.base import BaseModel
from clusterlora.engine.peft_folder import remove_adapters
from clusterlora.engine.stacked import StackedModel, Weights, read_adapter
from clusterlora.errors import BadData, ClusterLoraError, printable
from clusterlora.json_text import RepeatedKey, parsed
from clusterlora.models.loading import first_line
from clusterlora.recipe import MOST_ALPHA

_UNSUPPORTED = {
    "use_qalora": "train it again without QALoRA",
    "modules_to_save": "it replaces whole layers of the base; train it again without modules_to_save",
    "lora_bias": "train it again with lora_bias=False",
    "layer_replication": "it changes the base; train it again without layer_replication",
    "trainable_token_indices": "it changes the embedding of tokens; train it again without trainable_token_indices",
    "target_parameters": "it changes parameters that are no layers; train it again with target_modules alone",
    "alora_invocation_tokens": "it is active for a part of the prompt only; train it again without them",
}
"""Settings of a PEFT LoRA that change its answers and are not computed here, with what to do about each."""
_CONVERTED = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Initialisations that change the base's weights; PEFT converts an adapter of all but the last to a plain one when it saves it."""
_PROMPTS = ("The quick brown fox", "Please turn on the light in the kitchen.", "1 2 3 4")
_MAGNITUDE = "lora_magnitude_vector"
_SHARE = 0.02
"""By which share of what the adapter changes its logits may differ from PEFT's; a wrong reading differs by about all of it."""


def check_imported(folder: Path, base: BaseModel, *, any_base: bool) -> None:
    """Check that a PEFT folder is a LoRA of this base that answers as in PEFT. Its layers may differ in rank and alpha; it may be a DoRA.

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
    try:
        ours = None if config.get("use_dora") else _stacked_logits(folder, config, base)
        _compare_with_peft(folder, config, base, ours)
    except (ClusterLoraError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise BadData(f"{folder}: PEFT cannot use its settings ({first_line(error)}); save it with save_pretrained") from error


def _stacked_logits(folder: Path, config: Mapping[str, Any], base: BaseModel) -> list[Float[Tensor, "_T V"]]:
    stacked = StackedModel(base.model)
    try:
        stacked.load([Weights(read_adapter(folder))])
        return _logits(base, stacked)
    except BadData as problem:
        raise _does_not_fit(folder, config, base, problem) from problem
    finally:
        stacked.close()


def _does_not_fit(folder: Path, config: Mapping[str, Any], base: BaseModel, problem: object) -> BadData:
    made_for = config.get("base_model_name_or_path")
    return BadData(
        f"{folder}: does not fit base model {base.name!r} ({printable(str(problem))}); it was made for {made_for!r}; "
        "give that as --base-model"
    )


def _read_config(folder: Path) -> Mapping[str, Any]:
    weight_files(folder)
    try:
        config = parsed((folder / "adapter_config.json").read_bytes())
    except RepeatedKey as error:
        raise BadData(f"{folder}: in adapter_config.json {printable(str(error))}") from error
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
    targets = config.get("target_modules")
    if not (targets is None or isinstance(targets, str) or (isinstance(targets, list) and all(isinstance(name, str) for name in targets))):
        raise BadData(f"{folder}: has target_modules={targets!r:.60}; it must be a list of names, or a regular expression")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CONVERTED):
        raise BadData(
            f"{folder}: starts from {start} and belongs to a changed base; save it as a plain LoRA with "
            "save_pretrained(folder, path_initial_model_for_weight_conversion=...)"
        )
    for name, value in _by_layer(folder, config, "r", "rank_pattern"):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadData(f"{folder}: has {name}={value!r}; a rank is a whole number of at least 1")
    for name, value in _by_layer(folder, config, "lora_alpha", "alpha_pattern"):
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MOST_ALPHA:
            raise BadData(f"{folder}: has {name}={value!r}; it must be a number of at most {MOST_ALPHA:,}")


def _by_layer(folder: Path, config: Mapping[str, Any], name: str, pattern: str) -> Iterator[tuple[str, Any]]:
    """Yield a setting and what a pattern of layers has instead, each with its name."""
    yield name, config.get(name)
    instead = config.get(pattern) or {}
    if not isinstance(instead, dict):
        raise BadData(f"{folder}: has {pattern}={instead!r:.60}; it must be an object from layer to value")
    for layer, value in instead.items():
        try:
            re.compile(layer)
        except re.error as error:
            raise BadData(f"{folder}: has {pattern} for {layer!r}, which is no regular expression ({printable(str(error))})") from error
        yield f"{pattern}[{layer!r}]", value


def _check_tensors(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise BadData unless every tensor is finite and a LoRA factor of its layer's rank, or a magnitude of DoRA's."""
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, OSError) as error:
        raise BadData(
            f"{folder}: adapter_model.safetensors cannot be read ({printable(str(error))}); save it with save_pretrained"
        ) from error
    if not tensors:
        raise BadData(f"{folder}: adapter_model.safetensors holds no tensor; save it with save_pretrained")
    sides = ("lora_A.weight", "lora_B.weight", *([_MAGNITUDE] if config.get("use_dora") else []))
    for name, tensor in tensors.items():
        side = next((side for side in sides if name.endswith(f".{side}")), None)
        if side is None:
            raise BadData(
                f"{folder}: tensor {printable(name)} is no factor of a linear layer (embeddings and whole layers cannot be "
                "imported); train it again with linear layers alone as target_modules"
            )
        n_axes, what = (1, "a vector") if side == _MAGNITUDE else (2, "a matrix")
        if tensor.ndim != n_axes or not tensor.is_floating_point():
            raise BadData(
                f"{folder}: tensor {printable(name)} is {tensor.dtype} of shape {tuple(tensor.shape)}, not {what} of floating-point numbers"
            )
        if not tensor.isfinite().all():
            raise BadData(f"{folder}: tensor {printable(name)} holds NaN or infinity; its training diverged")
        if side == _MAGNITUDE:
            continue
        rank = tensor.shape[0 if side == "lora_A.weight" else 1]
        setting, configured = _configured_rank(config, name.removeprefix("base_model.model.").removesuffix(f".{side}"))
        if rank != configured:
            raise BadData(
                f"{folder}: tensor {printable(name)} has rank {rank}, but adapter_config.json says {setting}={configured}; "
                "the two do not belong together"
            )


def _configured_rank(config: Mapping[str, Any], layer: str) -> tuple[str, int]:
    """Return the setting that gives a layer its rank, and its value."""
    by_pattern = config.get("rank_pattern") or {}
    key = get_pattern_key(list(by_pattern), layer)
    return (f"rank_pattern[{key!r}]", by_pattern[key]) if key in by_pattern else ("r", config["r"])


def _check_base(folder: Path, config: Mapping[str, Any], base: BaseModel) -> None:
    """Raise BadData if the folder names another base. Only the last part of a path or hub id counts: folders move."""
    named = config.get("base_model_name_or_path")
    for name in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(name), str | None):
            raise BadData(f"{folder}: has {name}={config[name]!r:.60}; it must be a text, or null")
    if named and _last_part(named) != _last_part(base.name):
        raise BadData(
            f"{folder}: was made for base model {named!r}, and the study's is {base.name!r}; give --base-model {printable(named)}, "
            "or --same-base if the two hold the same weights"
        )
    revision = config.get("revision")
    if revision and revision != "main" and base.revision and not base.revision.startswith(revision):
        raise BadData(
            f"{folder}: was made for revision {printable(revision)} of {named!r}, and the base here is {base.revision}; "
            "give --same-base if the two hold the same weights"
        )


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def _compare_with_peft(folder: Path, config: Mapping[str, Any], base: BaseModel, ours: list[Float[Tensor, "_T V"]] | None) -> None:
    """Raise BadData if the adapter has other tensors than its settings say, or PEFT computes other logits with it than `ours`."""
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    plain = _logits(base)
    try:
        peft_model = PeftModel(base.model, LoraConfig.from_pretrained(str(folder))).eval()
    except ValueError as problem:
        remove_adapters(base.model)
        raise _does_not_fit(folder, config, base, problem) from problem
    except Exception:
        remove_adapters(base.model)
        raise
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
        if other := _other_tensors(tensors, get_peft_model_state_dict(peft_model, save_embedding_layers=False)):
            raise BadData(f"{folder}: {other}, as adapter_config.json has it on this base; save it again with save_pretrained")
        set_peft_model_state_dict(peft_model, tensors)
        theirs = _logits(base)
    finally:
        peft_model.unload()
    if ours is None:
        return
    change = max(float((a - b).abs().max()) for a, b in zip(theirs, plain, strict=True))
    noise = 64 * torch.finfo(base.model.dtype).eps * max(float(logits.abs().max()) for logits in plain)
    difference = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    if difference > _SHARE * change + noise:
        raise BadData(
            f"{folder}: its logits differ from PEFT's by {difference:.3g}, where the adapter changes them by {change:.3g}; "
            "train it again with PEFT's defaults beside r, lora_alpha and target_modules"
        )


def _other_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Say how an adapter's tensors differ from those of its settings on this base; empty when they do not."""
    if missing := sorted(expected.keys() - tensors.keys()):
        return f"it lacks tensor {missing[0]}"
    if unexpected := sorted(tensors.keys() - expected.keys()):
        return f"tensor {unexpected[0]} is of no layer that its settings target"
    return next(
        (
            f"tensor {name} has shape {tuple(tensors[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if tensor.shape != tensors[name].shape
        ),
        "",
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
