"""Full weights: a base model into which an adapter is merged, as a folder that any program loads without PEFT."""

import json
import shutil
from pathlib import Path
from typing import Any

from clusterlora.durable import make_folder, put_folder_in_place
from clusterlora.errors import BadData
from clusterlora.models.base import base_to_measure, load_base
from clusterlora.settings import PreparedModel

MERGED_LINES = """\
import json, pathlib, sys
from transformers import AutoModelForCausalLM, AutoTokenizer

persona_id, text = sys.argv[1:]
routes = json.loads(pathlib.Path("routes.json").read_text())
name = routes["personas"].get(persona_id, routes["default"])
folder = "base" if name == "base" else f"merged/{name}"
model = AutoModelForCausalLM.from_pretrained(folder, dtype=routes["dtype"])
tokenizer = AutoTokenizer.from_pretrained(folder)
template, turns = pathlib.Path("chat_template.jinja").read_text(), [{"role": "user", "content": text}]
prompt = tokenizer.apply_chat_template(
    turns, chat_template=template, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
ends = {"max_new_tokens": routes["max_new_tokens"], "eos_token_id": routes["stop_token_ids"], "pad_token_id": routes["pad_token_id"]}
answer, lead = model.generate(**prompt, do_sample=False, **ends)[0, prompt["input_ids"].shape[1] :], routes["answer_lead"]
answer = answer[len(lead) :] if answer[: len(lead)].tolist() == lead else answer
print(tokenizer.decode(answer, skip_special_tokens=True).strip())
"""
"""Answers one request in the folder of an export: `python load.py PERSONA TEXT`."""


def refuse_unmergeable(model: PreparedModel) -> None:
    """Raise BadData for a base to which no adapter can be added, before anything is written."""
    if model.quantisation != "none":
        raise BadData(f"the base was held in {model.quantisation}, and adapters are not added to rounded weights; export --format peft")


def merge_adapters(target: Path, names: tuple[str, ...], model: PreparedModel) -> None:
    """Replace the PEFT folders under `adapters/` by full models under `merged/`, each with its tokenizer and the study's chat template.

    Weights are added in float32 and stored in the study's dtype.

    Raises:
        BadData: an adapter is no change of weights, or the disk has no room for so many models.
    """
    import torch

    needed = sum(_n_weights(target / "adapters" / name, model) for name in names) * getattr(torch, model.dtype).itemsize
    if needed > (free := shutil.disk_usage(target).free):
        raise BadData(
            f"{len(names)} full models take about {needed / 1e9:.1f} GB, and {target} has {free / 1e9:.1f} GB left; export one of them "
            "with --persona ID, or --format peft"
        )
    make_folder(target / "merged")
    for name in names:
        _merge(target / "adapters" / name, target / "merged" / name, model, template=target / "chat_template.jinja")
    shutil.rmtree(target / "adapters")


def _n_weights(adapter: Path, model: PreparedModel) -> int:
    """Return how many weights the full model has: those of the base, and an output layer of its own where the adapter parts the two."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    base: Any = base_to_measure(model.base).model
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    changed = {*(config.get("target_modules") or ()), *(config.get("modules_to_save") or ())}
    parts = any(module is end and path.rpartition(".")[2] in changed for path, module in base.named_modules() for end in ends)
    head = ends[1].weight.numel() if parts and base.config.get_text_config().tie_word_embeddings else 0
    return sum(weight.numel() for weight in base.parameters()) + head


def _merge(adapter: Path, folder: Path, model: PreparedModel, *, template: Path) -> None:
    import torch
    from peft import PeftModel, PromptLearningConfig

    base = load_base(model.base, dtype="float32")
    is_tied = _untie(base.model)
    peft = PeftModel.from_pretrained(base.model, str(adapter))
    if isinstance(peft.active_peft_config, PromptLearningConfig):
        raise BadData(f"adapter {adapter.name} is a prefix, which is no change of weights; export --format peft")
    merged: Any = peft.merge_and_unload(safe_merge=True)
    embedding, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    if is_tied and torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
        merged.config.get_text_config().tie_word_embeddings = merged.config.tie_word_embeddings = True
    merged = merged.to(getattr(torch, model.dtype))
    merged.config.dtype = getattr(torch, model.dtype)
    scratch = folder.with_name(f".{folder.name}.unfinished")
    merged.save_pretrained(str(scratch))
    base.tokenizer.chat_template = template.read_text(encoding="utf-8")
    base.tokenizer.save_pretrained(str(scratch))
    put_folder_in_place(scratch, folder)


def _untie(model: Any) -> bool:
    """Give a model whose output layer is its input embedding one of its own; return whether it was so.

    An adapter of one of the two is added to one matrix then, and not to both.
    """
    import torch

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is not embedding.weight:
        return False
    head.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    return True
