"""Loads a causal language model and its tokenizer from a folder of safetensors or GGUF; no network, no code from the folder."""

import importlib.util
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterlora.chat.panics import panics_refused, panics_unprinted
from clusterlora.chat.template import ended_as_generated
from clusterlora.errors import ModelUnavailable, printable
from clusterlora.models.checks import (
    forget_undeclared_windows,
    read_settings,
    refuse_bad_end_ids,
    refuse_other_head,
    refuse_other_models,
    refuse_other_weights,
    refuse_stored_otherwise,
    refuse_tokens_without_embedding,
    refuse_unknown_token_without_id,
    refuse_what_cannot_be_computed,
)
from clusterlora.models.gguf_file import refuse_other_tensors, tensor_shapes
from clusterlora.models.quantised import bitsandbytes_arguments
from clusterlora.models.weights import weight_files
from clusterlora.settings import Dtype, Quantisation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*", "tekken.json", "*.tiktoken", "*.tokenizer", "byte_maps.json")
"""Files of which a tokenizer has one at least."""
_TRIAL = "A text: un texte où ça été, ein Größerer; текст, 一段文字, テスト, 한글, ไทย, हिन्दी, نص. 🙂👩‍🚀 e\u0301 \u00a0\t\n x1_000 <|end|>"
"""What a tokenizer is tried on: letters of many scripts, marks, digits, white space."""
_LOCAL: Mapping[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def load_causal_lm(
    folder: Path, *, dtype: Dtype, device: str = "cpu", quantisation: Quantisation = "none"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the model in `dtype`, and its tokenizer.

    Args:
        device: where the weights are loaded to; `meta` reads their names and shapes only, `auto` spreads the layers over all GPUs.
        quantisation: how bitsandbytes holds the linear layers.

    Raises:
        ModelUnavailable: no weights that may be loaded, others than the configuration asks for, another kind of model, or the folder asks
            for something this machine cannot do.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    weights = weight_files(folder)
    place: dict[str, Any] = {} if device == "cpu" else {"device_map": device}
    if quantisation != "none":
        place = {
            "device_map": device if device == "auto" else {"": device},
            "quantization_config": BitsAndBytesConfig(**bitsandbytes_arguments(quantisation, dtype)),
        }
    place |= _gguf(weights[0])
    with one_line(f"the model in {folder}", folder), quiet():
        refuse_other_models(folder)
        refuse_stored_otherwise(folder)
        # Misshapen weights are told by name with the missing ones.
        told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, **told, **_LOCAL, **place
        )
        model, info = loaded
        refuse_what_cannot_be_computed(model, folder)
        refuse_other_weights(folder, info)
        refuse_other_head(model, folder)
        forget_undeclared_windows(model.config.get_text_config())
        if device == "auto":
            refuse_offloaded(getattr(model, "hf_device_map", {}), folder)
        refuse_bad_end_ids(model, folder)
        tokenizer = load_tokenizer(folder)
        refuse_tokens_without_embedding(tokenizer, int(model.get_input_embeddings().weight.shape[0]))
        if "gguf_file" in place:
            refuse_other_tensors(weights[0], model)
            _forget_quantization(model)
    return model, tokenizer


def empty_causal_lm(folder: Path) -> "PreTrainedModel":
    """Return the model of a folder as its configuration describes it, on the meta device; a GGUF file has exactly its tensors.

    Raises:
        ModelUnavailable: as `load_causal_lm`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    weights = weight_files(folder)
    gguf = _gguf(weights[0])
    with one_line(f"the model in {folder}", folder), quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **_LOCAL, **gguf))
        refuse_what_cannot_be_computed(model, folder)
        if gguf:
            model.tie_weights()
            refuse_other_tensors(weights[0], model)
    return model


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a model folder. Raises ModelUnavailable as `load_causal_lm`."""
    from transformers import AutoTokenizer

    weights = weight_files(folder)
    gguf = _gguf(weights[0])
    if not gguf and not any(next(folder.glob(files), None) for files in _TOKENIZERS):
        raise ModelUnavailable(
            f"base model folder {folder} holds no tokenizer (such as tokenizer.json); get it from where the model comes from"
        )
    _refuse_tokenizer_of_a_package(folder)
    with one_line(f"the tokenizer in {folder}", folder), quiet(), panics_unprinted():
        # With mistral_common installed, its own tokenizer would be taken, which knows no chat template: other ids than without the package.
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, mistral_format=False, **_LOCAL, **gguf)
        refuse_unknown_token_without_id(tokenizer, folder)
        # Settings that it does not understand show when it is used.
        tokenizer("a b")
        with suppress(Exception):  # a small vocabulary may lack any of it; what panics is raised
            tokenizer.decode(tokenizer(_TRIAL).input_ids)
    file = folder / "generation_config.json"
    ends = read_settings(file).get("eos_token_id") if file.is_file() else None
    # Settings that name one end name the tokenizer's.
    return ended_as_generated(tokenizer, ends) if isinstance(ends, list) and tokenizer.chat_template else tokenizer


def _refuse_tokenizer_of_a_package(folder: Path) -> None:
    """Check that a tokenizer can be read with what is installed. Raises ModelUnavailable with the package that it needs."""
    for file, package in (("tokenizer.model", "sentencepiece"), ("tekken.json", "mistral_common")):
        readable = any((folder / other).is_file() for other in ("tokenizer.json", "vocab.json"))
        if (folder / file).is_file() and not readable and importlib.util.find_spec(package) is None:
            raise ModelUnavailable(
                f"base model folder {folder} holds its tokenizer as {file} alone, which takes the package {package}; install it, or get "
                "the model's tokenizer.json"
            )


def _gguf(weights: Path) -> dict[str, Any]:
    """Return the argument that names a GGUF file, which is whole; none for safetensors. Raises ModelUnavailable."""
    if weights.suffix != ".gguf":
        return {}
    tensor_shapes(weights)
    return {"gguf_file": weights.name}


@contextmanager
def one_line(what: str, folder: Path) -> Generator[None]:
    """Raise what is wrong with a model's folder as ModelUnavailable, in one line: libraries raise whatever happens to them on odd files.

    Args:
        what: what is loaded, which begins the line.
    """
    import torch

    try:
        with panics_refused(what):
            yield
    except (ModelUnavailable, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        if pointer := next((file for file in sorted(folder.rglob("*")) if _is_pointer(file)), None):
            raise ModelUnavailable(
                f"{pointer} is a pointer of Git LFS in the place of the file; get the file itself: git lfs pull"
            ) from error
        why = _missing(error, folder) if isinstance(error, KeyError) else first_line(error)
        if isinstance(error, TypeError | ZeroDivisionError | AttributeError):
            why += "; a value in its JSON files is none that transformers can use"
        raise ModelUnavailable(f"{what} cannot be loaded: {why}") from error


def _missing(error: KeyError, folder: Path) -> str:
    """Return what a library did not find, and the setting that asked for it: the error says nothing but the key."""
    file = folder / "config.json"
    asked = _path_of(error.args[0], read_settings(file)) if error.args and file.is_file() else None
    if error.args and " " in str(error.args[0]):
        return printable(str(error.args[0]).splitlines()[0])  # some put a sentence there
    return f"{asked} = {first_line(error)} (config.json) is not known" if asked else f"no {first_line(error)}"


def _path_of(value: object, settings: Mapping[str, Any]) -> str | None:
    """Return the dotted name of a setting that has a value; None where none has."""
    for name, one in settings.items():
        if isinstance(one, dict):
            inner = _path_of(value, one)
            if inner is not None:
                return f"{name}.{inner}"
        elif type(one) is type(value) and one == value:
            return name
    return None


def _is_pointer(file: Path) -> bool:
    """Return whether a file is what Git LFS leaves in a checkout without it."""
    return file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(b"version https://git-lfs")


def refuse_offloaded(device_by_layer: Mapping[str, Any], folder: Path) -> None:
    """Check that a model that was spread is on GPUs alone, or where there is none, all of it on the CPU. Raises ModelUnavailable."""
    import torch

    devices = set(device_by_layer.values())
    unwanted = {"cpu", "disk"} if len(devices) > 1 or torch.cuda.is_available() else {"disk"}
    if elsewhere := sorted(devices & unwanted):
        raise ModelUnavailable(
            f"the model in {folder} does not fit on the GPUs of this machine: layers would be computed from {' and '.join(elsewhere)}, "
            "which adapters cannot be trained on; use model.quantisation=nf4, more GPUs per worker or a smaller base"
        )


def _forget_quantization(model: Any) -> None:
    """Remove the quantiser's flags of a model read from GGUF.

    Its weights are dequantised, but Trainer and save_pretrained refuse a model with these flags.
    """
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def first_line(error: Exception) -> str:
    """Return the first line of a library's error message, and the second where the first one announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return printable(" ".join(lines[:2]) if lines[0].endswith(":") else lines[0])


@contextmanager
def quiet() -> Generator[None]:
    """Keep transformers' tables of missing weights, whole configurations and bars out of the log: what is wrong is raised."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        with without_progress_bars():
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def without_progress_bars() -> Generator[None]:
    """Disable transformers' progress bars inside the block."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
