"""The frozen base model that every adapter is added to: the caller's own, or one that is found by its name."""

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterlora.chat.template import ended_as_generated
from clusterlora.errors import BadSettings
from clusterlora.models.base import BaseModel, load_base
from clusterlora.models.checks import (
    forget_undeclared_windows,
    refuse_tokens_without_embedding,
    refuse_what_cannot_be_computed,
)
from clusterlora.models.device import usual_device
from clusterlora.models.quantised import compute_as_before, compute_dequantised, is_laid_out_anew

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BaseModel", "frozen_base"]


_PROVENANCE = ("_name_or_path", "transformers_version")
"""What a configuration says of where a model comes from."""
_SAMPLE = 256
"""Values of every weight that enter a revision."""


@contextmanager
def frozen_base(base: "BaseModel | PreTrainedModel | str | Path", tokenizer: "PreTrainedTokenizerBase | None") -> Generator[BaseModel]:
    """Yield the base in eval mode, its parameters frozen; a model of the caller's is afterwards as it was before.

    A name, folder or hub id is loaded on the first GPU, else on the CPU, in the faster dtype; see `models.base.load_base`.

    Raises:
        BadSettings: no tokenizer for a model of the caller's, or a model that the engine cannot run; names what to pass instead.
        ModelUnavailable: no such base, or none with a chat template, or a recurrent one.
    """
    if isinstance(base, BaseModel):
        yield base
        return
    if isinstance(base, str | Path):
        yield load_base(str(base), dtype="auto", device=usual_device())
        return
    _refuse_unusable(base, tokenizer)
    refuse_what_cannot_be_computed(base, base.name_or_path or "of the call")
    assert tokenizer is not None, "a base without tokenizer was not refused"
    requires_grad = {name: parameter.requires_grad for name, parameter in base.named_parameters()}
    training = [module for module in base.modules() if module.training]
    config = base.config.get_text_config()
    base.eval().requires_grad_(False)
    compute_dequantised(base)
    undeclared_windows: dict[str, Any] = {}
    try:
        revision = _revision(base)
        undeclared_windows = forget_undeclared_windows(config)
        ends: Any = base.generation_config.eos_token_id if base.generation_config else None
        ended = ended_as_generated(tokenizer, ends) if isinstance(ends, list) and tokenizer.chat_template else tokenizer
        yield BaseModel(base.name_or_path or type(base).__name__, revision, base, ended)
    finally:
        for setting, value in undeclared_windows.items():
            setattr(config, setting, value)
        compute_as_before(base)
        base.eval()
        for module in training:
            module.training = True
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(requires_grad[name])


def _refuse_unusable(model: Any, tokenizer: "PreTrainedTokenizerBase | None") -> None:
    import torch
    from transformers import PreTrainedModel

    from clusterlora.engine.placement import refuse_unusable_devices

    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise BadSettings(f"base is a {kind}; pass a PreTrainedModel (of a PEFT model, get_base_model()), a name or a folder")
    if model.get_output_embeddings() is None or not model.can_generate():
        raise BadSettings(f"base is a {kind}, which predicts no next token; pass a model whose class ends in ForCausalLM")
    if getattr(model, "_hf_peft_config_loaded", False) or any("lora_A" in name for name, _ in model.named_modules()):
        raise BadSettings(f"base is a {kind} that has adapters; remove them with delete_adapter or unload, or load the model again")
    if is_laid_out_anew(model):
        raise BadSettings(
            f"base is a {kind} in 4 bits that has answered on this CPU, for which bitsandbytes rounded its scales; load it again, and let "
            "it answer through clusterlora.engine.generate"
        )
    if tokenizer is None:
        raise BadSettings(f"base is a {kind} without its tokenizer; pass tokenizer=AutoTokenizer.from_pretrained({model.name_or_path!r})")
    refuse_unusable_devices(model)
    if model.dtype == torch.float16:
        raise BadSettings("base is in float16, in which gradients of adapters vanish; load it with dtype=torch.bfloat16 or torch.float32")
    embedding: Any = model.get_input_embeddings()
    refuse_tokens_without_embedding(tokenizer, int(embedding.weight.shape[0]))


def _revision(model: "PreTrainedModel") -> str:
    """Return a hash of the configuration and of evenly spaced values of every weight, which any training changes."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _PROVENANCE}
    state = hashlib.sha256(json.dumps([type(model).__name__, str(model.dtype), config], sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        state.update(f"{name} {tuple(parameter.shape)} ".encode())
        state.update(_sample(parameter))
    return state.hexdigest()[:16]


def _sample(parameter: "Tensor") -> bytes:
    import torch

    flat = parameter.detach().flatten()
    index = torch.linspace(0, len(flat) - 1, min(len(flat), _SAMPLE), device=flat.device).long()
    return flat[index].to("cpu", torch.float64).numpy().tobytes()
