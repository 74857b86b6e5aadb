"""Full weights: a base model into which an adapter is merged, as a folder that any program loads without PEFT."""

import shutil
from pathlib import Path

from clusterlora.durable import make_folder, put_folder_in_place
from clusterlora.errors import BadData
from clusterlora.models.base import base_folder, load_base
from clusterlora.models.weights import weight_files
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
answer = model.generate(**prompt, do_sample=False, **ends)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True).strip())
"""
"""Answers one request in the folder of an export: `python load.py PERSONA TEXT`."""


def merge_adapters(target: Path, names: tuple[str, ...], model: PreparedModel) -> None:
    """Replace the PEFT folders under `adapters/` by full models under `merged/`, each with its tokenizer and the study's chat template.

    Weights are added in float32 and stored in the study's dtype.

    Raises:
        BadData: the base is quantised, an adapter is no change of weights, or the disk has no room for so many models.
    """
    if model.quantisation != "none":
        raise BadData(f"the base was held in {model.quantisation}, and adapters are not added to rounded weights; export --format peft")
    needed = len(names) * sum(file.stat().st_size for file in weight_files(base_folder(model.base)))
    if needed > (free := shutil.disk_usage(target).free):
        raise BadData(
            f"{len(names)} full models take about {needed / 1e9:.1f} GB, and {target} has {free / 1e9:.1f} GB left; export one of them "
            "with --persona ID, or --format peft"
        )
    make_folder(target / "merged")
    for name in names:
        _merge(target / "adapters" / name, target / "merged" / name, model, template=target / "chat_template.jinja")
    shutil.rmtree(target / "adapters")


def _merge(adapter: Path, folder: Path, model: PreparedModel, *, template: Path) -> None:
    import torch
    from peft import PeftModel, PromptLearningConfig

    base = load_base(model.base, dtype="float32")
    peft = PeftModel.from_pretrained(base.model, str(adapter))
    if isinstance(peft.active_peft_config, PromptLearningConfig):
        raise BadData(f"adapter {adapter.name} is a prefix, which is no change of weights; export --format peft")
    merged = peft.merge_and_unload(safe_merge=True).to(getattr(torch, model.dtype))  # pyright: ignore[reportCallIssue]
    merged.config.dtype = getattr(torch, model.dtype)
    scratch = folder.with_name(f".{folder.name}.unfinished")
    merged.save_pretrained(str(scratch))
    base.tokenizer.chat_template = template.read_text(encoding="utf-8")
    base.tokenizer.save_pretrained(str(scratch))
    put_folder_in_place(scratch, folder)
