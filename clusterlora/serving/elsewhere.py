"""What a program without this package needs to give the answers that are served: settings, a chat template, a base model to load."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterlora.chat.source import with_system_prompt
from clusterlora.chat.template import ChatTemplate
from clusterlora.data.prompts import prompt_encoder
from clusterlora.durable import make_folder, write_durably
from clusterlora.errors import ModelUnavailable
from clusterlora.models.base import BASE_MODELS, base_folder, base_revision, base_to_describe
from clusterlora.models.hub import SAFE_FILES
from clusterlora.models.loading import load_causal_lm
from clusterlora.models.quantised import bitsandbytes_arguments
from clusterlora.models.revision import is_same_base
from clusterlora.models.weights import weight_files
from clusterlora.settings import PreparedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE_FOLDER = "base"
"""Folder of an export that holds the base model, where that is not on the hub."""

_COPIED = (*SAFE_FILES, "README.md", "LICENSE*", "additional_chat_templates/*.jinja")

PEFT_LINES = """\
import json, pathlib, sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

persona_id, text = sys.argv[1:]
routes = json.loads(pathlib.Path("routes.json").read_text())
adapter, where = routes["personas"].get(persona_id, routes["default"]), {"revision": routes["base_commit"]}
held = {"quantization_config": BitsAndBytesConfig(**routes["bitsandbytes"])} if routes["bitsandbytes"] else {}
base = AutoModelForCausalLM.from_pretrained(routes["base_model"], dtype=routes["dtype"], **where, **held)
base.generation_config = GenerationConfig.from_pretrained(".")
model = base if adapter == "base" else PeftModel.from_pretrained(base, f"adapters/{adapter}").eval()
tokenizer = AutoTokenizer.from_pretrained(routes["base_model"], **where)
template, turns = pathlib.Path("chat_template.jinja").read_text(), [{"role": "user", "content": text}]
prompt = tokenizer.apply_chat_template(
    turns, chat_template=template, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer, lead = model.generate(**prompt)[0, prompt["input_ids"].shape[1] :], routes["answer_lead"]
answer = answer[len(lead) :] if answer[: len(lead)].tolist() == lead else answer
print(tokenizer.decode(answer, skip_special_tokens=True).strip())
"""
"""Answers one request in the folder of an export: `python load.py PERSONA TEXT`."""


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How answers are generated.

    `base_model` is a hub id, with its commit, or BASE_FOLDER; `bitsandbytes` are the arguments of a quantised one's BitsAndBytesConfig,
    `stop_token_ids` end an answer, and `answer_lead` are the ids that come before the words of every answer.
    """

    base_model: str
    base_commit: str
    dtype: str
    bitsandbytes: Mapping[str, Any]
    system_prompt: str
    template_arguments: Mapping[str, str]
    template_date: str | None
    max_length: int
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    answer_lead: tuple[int, ...]
    pad_token_id: int


def answer_settings(model: PreparedModel, *, max_new_tokens: int, revision: str) -> AnswerSettings:
    """Return the settings by which a study's adapters answer.

    Args:
        revision: that of the base model the adapters were trained on.

    Raises:
        ModelUnavailable: the base model is not on this machine, or is another one here.
    """
    here = base_revision(model.base)
    if not is_same_base(revision, here):
        raise ModelUnavailable(
            f"base model {model.base!r} here has revision {here}, the adapters were trained on {revision}; install that one"
        )
    on_hub = model.base not in BASE_MODELS and not Path(model.base).is_dir()
    stop_ids, pad_id, tokenizer = _described(model.base, here)
    return AnswerSettings(
        base_model=model.base if on_hub else BASE_FOLDER,
        base_commit=base_folder(model.base).name if on_hub else "main",
        dtype=model.dtype,
        bitsandbytes=bitsandbytes_arguments(model.quantisation, model.dtype),
        system_prompt=model.system_prompt,
        template_arguments=dict(model.template_arguments),
        template_date=model.template_date,
        max_length=model.max_length,
        max_new_tokens=max_new_tokens,
        stop_token_ids=stop_ids,
        answer_lead=prompt_encoder(tokenizer, model).lead,
        pad_token_id=pad_id,
    )


@lru_cache(maxsize=8)
def _described(name: str, revision: str) -> "tuple[tuple[int, ...], int, PreTrainedTokenizerBase]":  # noqa: ARG001  (part of the cache's key)
    base = base_to_describe(name)
    return tuple(sorted(base.end_ids)), base.pad_id, base.tokenizer


def write_settings(target: Path, model: PreparedModel, settings: AnswerSettings) -> None:
    """Write chat_template.jinja with the study's system prompt, generation_config.json, and base/ where there is no hub id."""
    template = ChatTemplate(base_to_describe(model.base).tokenizer, model.template_arguments, model.template_date)
    source = with_system_prompt(template.source, model.system_prompt, has_system_role=template.has_system_role)
    write_durably(target / "chat_template.jinja", source.encode())
    generation: dict[str, Any] = {
        "do_sample": False,
        "eos_token_id": list(settings.stop_token_ids),
        "max_new_tokens": settings.max_new_tokens,
        "pad_token_id": settings.pad_token_id,
    }
    write_durably(target / "generation_config.json", (json.dumps(generation, indent=2) + "\n").encode())
    if settings.base_model == BASE_FOLDER:
        _copy_base(base_folder(model.base), target / BASE_FOLDER, model)


def _copy_base(folder: Path, target: Path, model: PreparedModel) -> None:
    """Copy a base model's files, so that they load in the study's dtype; weights of GGUF are written as safetensors."""
    make_folder(target)
    if weight_files(folder)[0].suffix == ".gguf":
        loaded, tokenizer = load_causal_lm(folder, dtype=model.dtype)
        loaded.save_pretrained(target)
        tokenizer.save_pretrained(target)
        return
    for file in sorted({file for pattern in _COPIED for file in folder.glob(pattern)}):
        copy = target / file.relative_to(folder)
        make_folder(copy.parent)
        shutil.copyfile(file, copy)
    config: dict[str, Any] = json.loads((target / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    write_durably(target / "config.json", (json.dumps(config | {"dtype": model.dtype}, indent=2) + "\n").encode())
