"""Full weights: a merged model computes what base and adapter compute together, and needs neither PEFT nor this package."""

import json
import runpy
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from clusterlora.adapters.held import HeldAdapters
from clusterlora.errors import BadData, UnknownName
from clusterlora.models.base import load_base
from clusterlora.serving import merged as module
from clusterlora.serving.export import export
from clusterlora.serving.exported import router_of_export
from clusterlora.serving.router import Router
from clusterlora.stores.json_codec import to_json
from clusterlora.stores.routing_table import KeyedAdapter, KeyedComposition, read_routing_table

pytestmark = pytest.mark.numeric

TOKENS = torch.arange(3, 40)[None]


def changed(artifacts: Path, **changes: Any) -> Path:
    file = artifacts / "routes.json"
    file.write_text(to_json(replace(read_routing_table(file.read_text()), **changes)))
    return artifacts


@torch.no_grad()
def test_a_merged_model_has_the_logits_of_base_and_adapter(artifacts: Path, tiny_base_folder: Path, tmp_path: Path) -> None:
    peft, full = export(artifacts, tmp_path / "peft", "peft"), export(artifacts, tmp_path / "full", "merged")
    assert full.adapters == peft.adapters
    assert len(full.adapters) == 2
    assert not (tmp_path / "full" / "adapters").exists()
    plain: Any = load_base(str(tiny_base_folder)).model
    bare = plain(TOKENS).logits
    for name in full.adapters:
        together = PeftModel.from_pretrained(load_base(str(tiny_base_folder)).model, str(tmp_path / "peft" / "adapters" / name))
        merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "full" / "merged" / name, dtype="float32")
        expected = together(TOKENS).logits
        change = float((expected - bare).abs().max())
        assert change > 0.1
        assert float((merged(TOKENS).logits - expected).abs().max()) < 1e-3 * max(1.0, change)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")  # PEFT's, where the other program adapts a tied layer
@pytest.mark.parametrize("end", ["lm_head", "embed_tokens"])
def test_an_adapter_of_one_end_of_a_tied_base_changes_that_end_alone(
    end: str, artifacts: Path, tiny_base_folder: Path, tmp_path: Path
) -> None:
    plain: Any = load_base(str(tiny_base_folder)).model
    assert plain.config.tie_word_embeddings
    bare = plain(TOKENS).logits
    kinds = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", end])
    adapted: Any = get_peft_model(load_base(str(tiny_base_folder)).model, kinds)
    generator = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    expected = adapted(TOKENS).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of tied weights
        adapted.save_pretrained(str(tmp_path / "one"), save_embedding_layers=False)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "one" / file, artifacts / "adapters" / "aaaa" / file)
    full = export(changed(artifacts, personas={}), tmp_path / "full", "merged")
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "full" / "merged" / full.adapters[0], dtype="float32")
    assert not merged.config.tie_word_embeddings
    assert float((expected - bare).abs().max()) > 0.1
    assert float((merged(TOKENS).logits - expected).abs().max()) < 1e-3 * float((expected - bare).abs().max())


def test_a_tied_base_stays_tied_where_no_end_is_adapted(artifacts: Path, tmp_path: Path) -> None:
    full = export(artifacts, tmp_path / "full", "merged", persona_id="ann")
    folder = tmp_path / "full" / "merged" / full.adapters[0]
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def test_its_folder_answers_as_the_router_does_without_this_package(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = export(artifacts, tmp_path / "full", "merged")
    table = read_routing_table((artifacts / "routes.json").read_text())
    router = Router(table, HeldAdapters.of_model(artifacts / "adapters"))
    (answer,) = router.answer([{"persona_id": "ann", "messages": [{"role": "user", "content": "hi"}]}])
    monkeypatch.chdir(tmp_path / "full")
    monkeypatch.setattr(sys, "argv", ["load.py", "ann", "hi"])
    monkeypatch.setitem(sys.modules, "clusterlora", None)  # whoever imports it fails
    monkeypatch.setitem(sys.modules, "peft", None)
    capsys.readouterr()
    with warnings.catch_warnings(action="ignore"):  # of libraries, which a process of its own would print
        runpy.run_path("load.py", run_name="__main__")
    assert capsys.readouterr().out.strip() == answer["text"].strip()
    assert "clusterlora" not in full.command
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "full" / "merged" / full.adapters[0])
    assert "Be brief." in tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


def test_one_person_alone_is_exported_and_base_weights_only_where_somebody_needs_them(artifacts: Path, tmp_path: Path) -> None:
    ann = export(artifacts, tmp_path / "ann", "merged", persona_id="ann")
    assert len(ann.adapters) == 1
    assert json.loads((tmp_path / "ann" / "routes.json").read_text())["personas"] == {"ann": ann.adapters[0]}
    assert ann.default == ann.adapters[0]
    assert not (tmp_path / "ann" / "base").exists()
    bob = export(artifacts, tmp_path / "bob", "merged", persona_id="bob")
    assert bob.adapters == ()
    assert (tmp_path / "bob" / "base" / "config.json").is_file()
    with pytest.raises(UnknownName, match="nobody called 'eve'"):
        export(artifacts, tmp_path / "eve", "merged", persona_id="eve")


def test_what_cannot_be_full_weights_is_refused(artifacts: Path, tmp_path: Path) -> None:
    table = read_routing_table((artifacts / "routes.json").read_text())
    with pytest.raises(BadData, match="held in nf4"):
        export(changed(artifacts, model=replace(table.model, quantisation="nf4")), tmp_path / "full", "merged")
    assert not (tmp_path / "full").exists()
    shown = {"ann": KeyedComposition((KeyedAdapter("aaaa"),), shots=2)}
    with pytest.raises(BadData, match="prompt shows exchanges"):
        export(changed(artifacts, model=table.model, personas=shown), tmp_path / "shown", "merged")


def test_a_disk_without_room_is_told_before_anything_is_merged_and_nothing_is_left(
    artifacts: Path, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_base(str(tiny_base_folder)).model.num_parameters()
    table = read_routing_table((artifacts / "routes.json").read_text())
    # The base is stored in float32; a study in bfloat16 takes half of that.
    changed(artifacts, model=replace(table.model, dtype="bfloat16"))
    for free, is_enough in ((2 * 2 * weights - 1, False), (2 * 2 * weights, True)):
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _path, free=free: type("Usage", (), {"free": free})())
        if is_enough:
            export(artifacts, tmp_path / "full", "merged")
        else:
            with pytest.raises(BadData, match="2 full models take about"):
                export(artifacts, tmp_path / "full", "merged")
            assert list((tmp_path / "full").iterdir()) == []


def test_full_weights_are_not_served_as_adapters(artifacts: Path, tmp_path: Path) -> None:
    export(artifacts, tmp_path / "full", "merged")
    with pytest.raises(BadData, match="export of full weights"):
        router_of_export(tmp_path / "full")
