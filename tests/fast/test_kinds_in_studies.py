"""A study with adapters of every kind, what it refuses of a kind when its settings are resolved, and how adapters are combined."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from clusterlora.adapters.compositions import combined_weights
from clusterlora.comparison import figure
from clusterlora.config import check
from clusterlora.data.prompts import items, prompt_encoder
from clusterlora.engine.kinds import ADAPTER_KINDS, kind_of
from clusterlora.engine.stacked import Weights
from clusterlora.errors import BadData, BadSettings
from clusterlora.models.base import load_base
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe, problems
from clusterlora.report import cluster_map, data_picture
from clusterlora.requests import EvaluationRequest
from clusterlora.serving.export import export
from clusterlora.settings import Study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.register import register_models
from clusterlora.stores.json_codec import to_json
from clusterlora.values import WeightedAdapter
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import LOG, crown, rows_of, study_of_five, train_named


def study_of(seven: Study, **changes: Any) -> Study:
    return replace(seven, recipe=replace(seven.recipe, kind="dora"), **changes)


def test_what_a_kind_cannot_do_is_refused_when_the_settings_are_resolved(seven: Study) -> None:
    with pytest.raises(BadSettings, match=r"recipe.kind = 'dora': hybrid adds adapters up, as is possible with lora or rslora; leave"):
        check(study_of(seven, methods=("unified", "hybrid")))
    with pytest.raises(BadSettings, match=r"recipe.kind = 'dora': merge adds adapters up"):
        check(study_of(seven, methods=("unified", "merge")))
    with pytest.raises(BadSettings, match=r"recipe.kind = 'dora': clustering.algorithm = 'gradient' reads the factors of adapters"):
        check(study_of(seven, clustering=replace(seven.clustering, algorithm="gradient")))
    with pytest.raises(BadSettings, match=r"recipe.kind = 'lorra': unknown adapter kind; did you mean lora"):
        check(replace(seven, recipe=replace(seven.recipe, kind="lorra")))
    with pytest.raises(BadSettings, match=r"recipe.kind = 'ia3' and model.quantisation = 'nf4': PEFT cannot take such"):
        check(replace(seven, recipe=replace(seven.recipe, kind="ia3"), model=replace(seven.model, quantisation="nf4")))
    for recipe, methods in ((replace(seven.recipe, kind="prefix"), ("unified",)), (seven.recipe, ("unified", "prefix"))):
        with pytest.raises(BadSettings, match=r"model.device_map = 'auto': keys and values of a prefix are on one device"):
            check(replace(seven, recipe=recipe, methods=methods, model=replace(seven.model, device_map="auto")))
    check(study_of(seven))
    check(replace(seven, methods=("unified", "hybrid", "merge"), recipe=replace(seven.recipe, kind="rslora")))


def test_an_adapter_that_only_peft_can_add_is_used_alone_and_as_it_is(tmp_path: Path) -> None:
    alone = Weights(peft_folder=tmp_path)
    assert combined_weights([WeightedAdapter("a"), WeightedAdapter("b", 0.0)], lambda _name: alone) is alone
    with pytest.raises(BadData, match=r"1 a \+ 1 b: only adapters of the kinds lora and rslora can be weighted and added"):
        combined_weights([WeightedAdapter("a"), WeightedAdapter("b")], lambda _name: alone)
    with pytest.raises(BadData, match=r"0\.5 a: only adapters"):
        combined_weights([WeightedAdapter("a", 0.5)], lambda _name: alone)


@pytest.mark.parametrize("kind", ["ia3", *(pytest.param(kind, marks=pytest.mark.whole) for kind in ADAPTER_KINDS if kind != "ia3")])
def test_a_study_of_every_kind_trains_compares_and_exports_adapters_with_which_peft_answers_the_same(
    kind: str, tiny_base_folder: Path, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pictures would take as long as everything else.
    for module in (cluster_map, data_picture, figure):
        monkeypatch.setattr(module, "write_png", no_picture)
    study = study_of_five(tiny_base_folder, stores, kind=kind, learning_rate=3e-2)
    train_named(study, stores, ("unified", *(f"persona-{number:04d}" for number in range(5))))
    evaluate(EvaluationRequest(study_name=study.name), stores, LOG)
    comparison = compare_study(study.name, stores, LOG)
    assert {result.method for result in comparison.methods} == {"unified", "per_persona"}
    crown(study.name, stores, champion="per_persona")
    register_models(study.name, stores, LOG)
    assert isinstance(stores.tracker, MemoryTracker)
    (version,) = stores.tracker.models[study.name]
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    (artifacts / "routes.json").write_text(to_json(version.content))
    for key, folder in ((key, version.adapters.folder(key)) for key in sorted(version.adapters.keys)):
        shutil.copytree(folder, artifacts / "adapters" / key)
    exported = export(artifacts, tmp_path / "exported", "peft")

    base = load_base(str(tiny_base_folder))
    people, model_settings = stores.studies.dataset(study.name).by_id(), stores.studies.study(study.name).model
    encoder = prompt_encoder(base.tokenizer, model_settings)
    rows = [row for row in rows_of(study, stores) if row.method == "per_persona"]
    assert len({row.persona_id for row in rows}) == 5
    for row in rows[::2]:
        folder = exported.folder / "adapters" / exported.adapter_by_persona[row.persona_id]
        assert kind_of(folder).name == kind
        model: Any = PeftModel.from_pretrained(load_base(str(tiny_base_folder)).model, str(folder)).eval()
        (item,) = (item for item in items(model_settings, people[row.persona_id], "test") if item.id == row.item_id)
        prompt = encoder.encode_messages(item.messages)
        assert str(base.tokenizer.decode(greedy(model, prompt, base.end_ids), skip_special_tokens=True)).strip() == row.text


def no_picture(_compose: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def greedy(model: Any, prompt: Sequence[int], end_ids: frozenset[int]) -> list[int]:
    """Return the answer of at most four tokens."""
    ids = list(prompt)
    while len(ids) < len(prompt) + 4 and ids[len(prompt) :][-1:] != sorted(end_ids)[:1]:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_every_recipe_of_a_study_is_one_that_the_library_takes(seven: Study) -> None:
    assert list(problems(seven.recipe)) == list(problems(Recipe())) == []
    assert list(problems(replace(Recipe(), dropout=1.0, schedule="steep"))) == [  # pyrefly: ignore[bad-argument-type]
        "recipe.dropout = 1.0: use at most 0.9",
        "recipe.schedule = 'steep': use 'linear' or 'cosine' or 'constant'",
    ]
