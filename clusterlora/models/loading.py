"""A causal language model and its tokenizer out of a folder of safetensors or GGUF; nothing remote, no code from the folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clusterlora.errors import ModelUnavailable
from clusterlora.models.weights import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["float32", "bfloat16"]


def load_causal_lm(folder: Path, *, dtype: Dtype) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the model in `dtype` on the CPU, and its tokenizer.

    Raises:
        ModelUnavailable: no weights that may be loaded, or the folder asks for something this machine cannot do.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = weight_files(folder)
    gguf = {"gguf_file": weights[0].name} if weights[0].suffix == ".gguf" else {}
    local = {"trust_remote_code": False, "local_files_only": True}
    try:
        with without_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=True, **local, **gguf)
            tokenizer = AutoTokenizer.from_pretrained(folder, **local, **gguf)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelUnavailable(f"the model in {folder} cannot be loaded: {first_line(error)}") from error
    if gguf:
        _forget_quantization(model)
    return model, tokenizer


def _forget_quantization(model: Any) -> None:
    """Make a model read from GGUF an ordinary one.

    Its weights are dequantised, but Trainer and save_pretrained refuse it as long as it carries the quantiser's flags.
    """
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def first_line(error: Exception) -> str:
    """Return the first line of a library's message, for our own one-line messages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers' loading bars out of logs and of our own display."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
