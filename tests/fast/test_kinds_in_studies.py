"""A study trains, evaluates, registers, serves and exports adapters of the kind that `recipe.kind` names."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from clusterlora.adapters.compositions import combined_weights
from clusterlora.config import check
from clusterlora.engine.kinds import ADAPTER_KINDS, kind_of
from clusterlora.engine.stacked import Weights
from clusterlora.errors import BadData, BadSettings
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe, problems
from clusterlora.serving.export import export
from clusterlora.serving.router import Router
from clusterlora.settings import Study
from clusterlora.stages.compare import compare
from clusterlora.stages.register import register
from clusterlora.stores.json_codec import from_plain, plain, to_json
from clusterlora.stores.routing_table import RoutingTable
from clusterlora.values import WeightedAdapter
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import LOG, crown, request_of, rows_of, run


@pytest.mark.numeric
@pytest.mark.parametrize("kind", [kind for kind in ADAPTER_KINDS if kind != "lora"])
def test_a_study_runs_with_every_kind_and_its_registered_model_answers_as_it_was_evaluated(
    seven: Study, stores: Stores, tmp_path: Path, kind: str
) -> None:
    study = replace(
        seven,
        methods=("baseline", "unified", "per_persona"),
        recipe=replace(seven.recipe, kind=kind, epochs=2, learning_rate=3e-2),
        data=replace(seven.data, synthetic=replace(seven.data.synthetic, cluster_sizes=(2, 2))),
        clustering=replace(seven.clustering, sizes=(2, 2)),
    )
    check(study)
    run(study, stores)
    compare(study.name, stores, LOG)
    crown(study.name, stores)
    register(study.name, stores, LOG)
    rows = [row for row in rows_of(study, stores) if row.method == "per_persona"]
    assert isinstance(stores.tracker, MemoryTracker)
    (version,) = stores.tracker.models["small-per-persona"]
    assert {kind_of(folder).name for folder in version.folders.values()} == {kind}
    people = stores.studies.dataset(study.name).by_id()
    router = Router(from_plain(RoutingTable, plain(version.content)), version.folders)
    answers = router.answer([request_of(people[row.persona_id], row.item_id) for row in rows])
    assert [answer["text"] for answer in answers] == [row.text for row in rows]

    for key, folder in version.folders.items():
        shutil.copytree(folder, tmp_path / "artifacts" / "adapters" / key)
    (tmp_path / "artifacts" / "routes.json").write_text(to_json(version.content))
    exported = export(tmp_path / "artifacts", tmp_path / "exported", "peft")
    assert {kind_of(tmp_path / "exported" / "adapters" / name).name for name in exported.adapters} == {kind}
    base: Any = AutoModelForCausalLM.from_pretrained(str(study.model.base))
    PeftModel.from_pretrained(base, str(tmp_path / "exported" / "adapters" / exported.adapters[0]))
    if kind != "rslora":
        with pytest.raises(BadData, match="use --format peft"):
            export(tmp_path / "artifacts", tmp_path / "served", "vllm")


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
    check(study_of(seven))
    check(replace(seven, methods=("unified", "hybrid", "merge"), recipe=replace(seven.recipe, kind="rslora")))


def test_an_adapter_that_only_peft_can_add_is_used_alone_and_as_it_is(tmp_path: Path) -> None:
    alone = Weights(peft_folder=tmp_path)
    assert combined_weights([WeightedAdapter("a"), WeightedAdapter("b", 0.0)], lambda _name: alone) is alone
    with pytest.raises(BadData, match=r"1 a \+ 1 b: only adapters of the kinds lora and rslora can be weighted and added"):
        combined_weights([WeightedAdapter("a"), WeightedAdapter("b")], lambda _name: alone)
    with pytest.raises(BadData, match=r"0\.5 a: only adapters"):
        combined_weights([WeightedAdapter("a", 0.5)], lambda _name: alone)


def test_every_recipe_of_a_study_is_one_that_the_library_takes(seven: Study) -> None:
    assert list(problems(seven.recipe)) == list(problems(Recipe())) == []
    assert list(problems(replace(Recipe(), dropout=1.0, schedule="steep"))) == [  # pyright: ignore[reportArgumentType]
        "recipe.dropout = 1.0: use at most 0.9",
        "recipe.schedule = 'steep': use 'linear' or 'cosine' or 'constant'",
    ]
