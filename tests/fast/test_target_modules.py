"""Layers with an adapter: the base's own names, what they leave out, and what cannot be adapted."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from clusterlora.engine import AdapterJob, train_adapters
from clusterlora.engine.stacked import refuse_routed
from clusterlora.errors import BadSettings, ModelUnavailable
from clusterlora.models.base import usable_base
from clusterlora.models.targets import BlockWeights, block_weights, reach, resolved
from clusterlora.ports.stores import Stores
from clusterlora.recipe import ALL_LINEAR, Recipe
from clusterlora.settings import DataSettings, ModelSettings, Study
from clusterlora.stages.prepare import prepare_study
from tests.fixtures.imported import write_people
from tests.fixtures.stages import Notes

PHI3 = ("o_proj", "qkv_proj", "gate_up_proj", "down_proj")
WIDTH: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def weights_of(name: str, **config: Any) -> BlockWeights:
    with torch.device("meta"):
        return block_weights(getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**WIDTH, **config)))


@pytest.fixture
def phi3_folder(tmp_path: Path, tiny_base_folder: Path) -> Path:
    """Return a folder with a tiny random Phi-3 and the tokenizer of the tiny base."""
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "phi3"))
    n_tokens = json.loads((folder / "config.json").read_text())["vocab_size"]
    config = transformers.Phi3Config(**WIDTH, vocab_size=n_tokens, max_position_embeddings=4096)
    transformers.Phi3ForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_base_with_names_of_its_own_gets_adapters_on_all_its_linear_layers():
    weights = weights_of("Phi3")
    assert resolved(Recipe(), weights).target_modules == PHI3
    assert resolved(Recipe(target_modules=(ALL_LINEAR,)), weights).target_modules == PHI3
    assert reach(resolved(Recipe(), weights), weights) == ""


def test_a_router_is_no_layer_that_an_adapter_is_put_on_though_its_class_is_a_linear_layers():
    weights = weights_of("Phimoe", num_local_experts=4, num_experts_per_tok=2)
    assert resolved(Recipe(), weights).target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert "router.weight" in weights.n_weights


def test_a_base_with_the_names_of_the_default_keeps_them_and_thereby_the_keys_of_its_adapters():
    weights = weights_of("Llama")
    assert resolved(Recipe(), weights) == Recipe()
    assert resolved(Recipe(target_modules=(ALL_LINEAR,)), weights) == Recipe()


def test_what_is_named_stays_and_what_the_base_lacks_is_told_with_the_share_that_is_reached():
    weights, recipe = weights_of("Phi3"), Recipe(target_modules=("q_proj", "o_proj", "down_proj"))
    assert resolved(recipe, weights) == recipe
    assert reach(recipe, weights) == (
        "recipe.target_modules = q_proj, o_proj, down_proj: the base model has no q_proj; adapters reach 33% of the weights in its blocks, "
        "and not gate_up_proj, qkv_proj"
    )
    chosen = Recipe(target_modules=("o_proj", "down_proj"))
    assert reach(chosen, weights) == "", "fewer layers than there are were asked for"
    assert reach(Recipe(target_modules=("o_proj", "lm_head")), weights) == ""


def test_targets_that_no_layer_has_are_refused_with_those_it_has():
    with pytest.raises(BadSettings, match="= query, key: the base model has no such layer; it has o_proj, qkv_proj, gate_up_proj"):
        resolved(Recipe(target_modules=("query", "key")), weights_of("Phi3"))
    assert resolved(Recipe(kind="prefix", target_modules=("query",)), weights_of("Phi3")).target_modules == ("query",)


@pytest.mark.parametrize("named", [("q_proj", "down_proj"), ("experts.gate_up_proj",), ("gate_proj", "up_proj", "down_proj")])
@pytest.mark.parametrize("family", ["GraniteMoe", "GptOss"])
def test_experts_that_peft_does_not_reach_are_refused_with_the_layers_that_it_does(family: str, named: tuple[str, ...]) -> None:
    weights = weights_of(family, num_local_experts=4, num_experts_per_tok=2)
    assert resolved(Recipe(), weights).target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    with pytest.raises(BadSettings, match=f"{named[-1]} would be weights of experts, .*: adapters are on q_proj"):
        resolved(Recipe(target_modules=named), weights)


def test_experts_have_no_adapter_unless_they_are_named_and_that_is_told():
    weights = weights_of("Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
    recipe = resolved(Recipe(), weights)
    assert recipe.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert "of the weights in its blocks, and not experts.gate_up_proj, experts.down_proj" in reach(recipe, weights)
    with pytest.raises(BadSettings, match="the experts of this base hold gate_proj and up_proj as one; name both or neither"):
        resolved(Recipe(target_modules=("q_proj", "up_proj")), weights)
    named = Recipe(target_modules=("q_proj", "gate_proj", "up_proj", "down_proj"), dropout=0.0)
    assert resolved(named, weights) == named
    assert weights.reached(named.target_modules, "experts.gate_up_proj")
    with pytest.raises(BadSettings, match=r"names experts, and recipe\.dropout = 0\.1: .*set recipe\.dropout=0"):
        resolved(replace(named, dropout=0.1), weights)


@pytest.mark.whole
def test_a_study_decides_on_names_says_what_they_leave_out_and_goes_on_with_them(tmp_path: Path, stores: Stores, phi3_folder: Path):
    write_people(tmp_path / "people.jsonl", ("ann", "bob"))
    data = DataSettings(source="table", path=str(tmp_path / "people.jsonl"), train=4, val=1, test=1)
    study = Study(name="phi", data=data, model=ModelSettings(base=str(phi3_folder), dtype="float32"))
    log = Notes()
    prepare_study(study, stores, log)
    assert stores.studies.study("phi").recipe.target_modules == PHI3
    assert not any("target_modules" in note for note in log.notes)
    prepare_study(study, stores, log)
    prepare_study(replace(study, recipe=Recipe(target_modules=(ALL_LINEAR,))), stores, log)
    with pytest.raises(BadSettings, match=r"exists with other settings: recipe\.target_modules was"):
        prepare_study(replace(study, recipe=Recipe(target_modules=("o_proj",))), stores, log)
    prepare_study(replace(study, name="part", recipe=Recipe(target_modules=("q_proj", "o_proj"))), stores, log)
    assert any(note.startswith("recipe.target_modules = q_proj, o_proj: the base model has no q_proj; ") for note in log.notes)


def test_the_engine_decides_on_names_and_tells_what_they_leave_out(tmp_path: Path, phi3_folder: Path, caplog: pytest.LogCaptureFixture):
    ask, answer = {"role": "user", "content": "light"}, {"role": "assistant", "content": "on"}
    model = transformers.AutoModelForCausalLM.from_pretrained(phi3_folder)
    jobs = [
        AdapterJob("whole", [[ask, answer]], Recipe(rank=2, epochs=1)),
        AdapterJob("part", [[ask, answer]], Recipe(rank=2, epochs=1, target_modules=("q_proj", "o_proj"))),
        AdapterJob("part-again", [[ask, answer]], Recipe(rank=2, epochs=1, target_modules=("q_proj", "o_proj"))),
    ]
    with caplog.at_level(logging.WARNING, logger="clusterlora"):
        whole, _, _ = train_adapters(model, jobs, tokenizer=AutoTokenizer.from_pretrained(phi3_folder), folder=tmp_path / "adapters")
    assert set(json.loads((whole.folder / "adapter_config.json").read_text())["target_modules"]) == set(PHI3)
    assert [record.getMessage() for record in caplog.records if "q_proj" in record.getMessage()] == [
        "recipe.target_modules = q_proj, o_proj: the base model has no q_proj; adapters reach 13% of the weights in its blocks, "
        "and not gate_up_proj, qkv_proj, down_proj"
    ]


def test_layers_that_a_router_sends_some_tokens_to_are_refused():
    refuse_routed("mlp.fc1", torch.zeros(6, 4), n_rows=2, n_tokens=3)
    refuse_routed("attention.expand", torch.zeros(2, 50, 4), n_rows=2, n_tokens=3)
    with pytest.raises(BadSettings, match=r"layer experts\.0\.w1 reads 5 of 6 tokens, as an expert does"):
        refuse_routed("experts.0.w1", torch.zeros(5, 4), n_rows=2, n_tokens=3)


def test_a_recurrent_base_is_refused_when_a_study_is_prepared(tmp_path: Path, tiny_base_folder: Path):
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "mamba"))
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=8, vocab_size=300)
    transformers.MambaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(ModelUnavailable, match=r"mamba is a MambaForCausalLM, which keeps a recurrent state"):
        usable_base(str(folder))
