"""What adapters and methods are called decides nothing, and the documentation's example method is one file in every step of a study."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clusterlora.cli import cli
from clusterlora.comparison.compare import compare_methods
from clusterlora.config import check
from clusterlora.errors import BadData, BadSettings
from clusterlora.metadata import ComparisonSummary
from clusterlora.methods import METHODS, controls
from clusterlora.methods.method import Method, StudyView, composition_of
from clusterlora.planning.ladder import OWN, REFERENCE
from clusterlora.planning.training_groups import gate_groups, remaining_groups
from clusterlora.planning.work_plan import WorkPlan
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.requests import TrainingGroup
from clusterlora.serving.export import export
from clusterlora.settings import Rung, Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.register import register_models
from clusterlora.stores.json_codec import to_json
from clusterlora.values import AdapterSpec, EvaluationRow, MethodPlan, digest
from tests.fixtures.examples import examples_of_extending
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import LOG, TRAINED_HERE, missing_groups, plan_of, run, state_of


@pytest.fixture
def pairs() -> Callable[[StudyView], MethodPlan]:
    """Return the method of docs/extending.md."""
    return examples_of_extending()["A method"]["pairs"]


def method_of(name: str, *specs: AdapterSpec) -> Method:
    """Return a method of these adapters, each of which answers whom it learns from."""
    return Method(lambda _view: MethodPlan(name, specs, tuple((p, (composition_of(spec),)) for spec in specs for p in spec.persona_ids)))


def prepared(study: Study, stores: Stores) -> tuple[str, ...]:
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    return stores.studies.dataset(study.name).ids


def called_otherwise(plan: MethodPlan) -> MethodPlan:
    """Return the plan whose adapters, all but the one that everything is compared with, have names without any meaning."""

    def renamed(name: str) -> str:
        return name if name == REFERENCE or name.startswith("x") else f"x{digest(name)}"

    def spec(old: AdapterSpec) -> AdapterSpec:
        return replace(
            old,
            name=renamed(old.name),
            variant_of=old.variant_of and renamed(old.variant_of),
            init_from=old.init_from and renamed(old.init_from),
            frozen_adapter=old.frozen_adapter and renamed(old.frozen_adapter),
            merge_of=tuple(renamed(name) for name in old.merge_of),
        )

    arms_by_persona = tuple(
        (p, tuple(replace(arm, adapters=tuple(replace(a, name=renamed(a.name)) for a in arm.adapters)) for arm in arms))
        for p, arms in plan.arms_by_persona
    )
    return replace(plan, adapters=tuple(spec(one) for one in plan.adapters), arms_by_persona=arms_by_persona)


def in_keys(groups: Iterable[TrainingGroup], plan: WorkPlan) -> list[list[str]]:
    """Return the groups as the sorted keys of their adapters, in any order: those that last equally long may change places."""
    return sorted(sorted(plan.keys[name] for name in group.adapters) for group in groups)


@pytest.mark.whole
@pytest.mark.parametrize("rung", [OWN, Rung(name="warm-start", init="unified")], ids=lambda rung: rung.name)
def test_what_adapters_are_called_changes_neither_their_keys_nor_their_groups(
    seven: Study, stores: Stores, rung: Rung, monkeypatch: pytest.MonkeyPatch
) -> None:
    seven = replace(seven, methods=TRAINED_HERE, seeds=2)
    prepared(seven, stores)

    def state(study: Study) -> tuple[object, ...]:
        plan = plan_of(study, stores, rung)
        groups = missing_groups(study, stores, tuple(plan.specs), rung), chain.from_iterable(gate_groups(state_of(study, stores), plan))
        left = list(chain.from_iterable(remaining_groups(state_of(study, stores)))) if rung == OWN else []
        trained_by = {plan.keys[name]: method for name, method in plan.trained_by().items()}
        return sorted(plan.keys.values()), [in_keys(some, plan) for some in (*groups, left)], trained_by

    before = state(seven)
    for name, method in METHODS.items():
        monkeypatch.setitem(METHODS, name, replace(method, plan=lambda view, plan=method.plan: called_otherwise(plan(view))))
    # Another number of draws plans the same, and is planned anew.
    otherwise = replace(seven, evaluation=replace(seven.evaluation, bootstrap_draws=201))
    assert state(otherwise) == before
    assert not any("-" in name for name in plan_of(otherwise, stores).specs)


@pytest.mark.whole
def test_adapters_of_a_methods_own_groups_share_the_runs_of_the_fan_out(
    seven: Study, stores: Stores, pairs: Callable[[StudyView], MethodPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "pairs", Method(pairs))
    study = replace(seven, name="pairs-alone", methods=("pairs",))
    prepared(study, stores)
    plan = plan_of(study, stores)
    assert len(plan.specs) == 4
    assert [group.name for group in missing_groups(study, stores, tuple(plan.specs))] == ["fan-out-1-of-2", "fan-out-2-of-2"]


@pytest.mark.whole
def test_adapters_whose_names_begin_alike_are_no_seeds_of_one_another(
    seven: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(seven, name="tones", methods=("tones",))
    people = prepared(study, stores)
    names = ("tone.sad-00", "tone.shy-00", "tone.s1")
    specs = [
        # Of one key they would be one adapter, trained once.
        AdapterSpec(name=name, persona_ids=people, recipe=Recipe(seed=number), scope="cluster", cluster=number)
        for number, name in enumerate(names)
    ]
    monkeypatch.setitem(METHODS, "tones", method_of("tones", *specs))
    groups = missing_groups(study, stores, names)
    assert sorted((group.name, group.adapters) for group in groups) == sorted((name, (name,)) for name in names)


@pytest.mark.whole
def test_an_adapter_of_two_people_is_not_one_persons_whatever_it_is_called(
    seven: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(seven, name="styles", methods=("styles",))
    people = prepared(study, stores)
    spec = AdapterSpec(name="persona-style-00", persona_ids=people[:2], recipe=Recipe(), scope="cluster", cluster=0)
    monkeypatch.setitem(METHODS, "styles", method_of("styles", spec))
    assert [group.name for group in missing_groups(study, stores, (spec.name,))] == ["persona-style-00"]


@pytest.mark.whole
def test_two_methods_cannot_plan_different_adapters_of_one_name(seven: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    study = replace(seven, name="alike", methods=("mine", "yours"))
    people = prepared(study, stores)
    monkeypatch.setitem(METHODS, "mine", method_of("mine", AdapterSpec(name="a", persona_ids=people, recipe=Recipe())))
    monkeypatch.setitem(METHODS, "yours", method_of("yours", AdapterSpec(name="a", persona_ids=people[1:], recipe=Recipe())))
    with pytest.raises(BadSettings, match="methods mine and yours plan different adapters called 'a'"):
        plan_of(study, stores)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"name": "a/b"}, "adapter 'a/b': use at most 128 letters"),
        ({"name": "../a"}, "letter or digit first"),
        ({"scope": "cluster"}, "has scope='cluster' and cluster=None"),
        ({"cluster": 3}, "has scope='group' and cluster=3"),
        ({"scope": "person"}, "is for one person but learns from 2"),
    ],
)
def test_a_spec_whose_fields_disagree_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadSettings, match=problem):
        replace(AdapterSpec(name="a", persona_ids=("p", "q"), recipe=Recipe()), **fields)


@pytest.mark.whole
def test_the_method_of_the_documentation_is_one_file_in_every_step_of_a_study(
    seven: Study, finished_stores: Stores, pairs: Callable[[StudyView], MethodPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "pairs", Method(pairs))
    stores, tracker = finished_stores, finished_stores.tracker
    assert isinstance(tracker, MemoryTracker)
    study = replace(seven, name="paired", methods=("unified", "cluster", "selective_routing", "pairs"), gate=replace(seven.gate, ladder=()))
    check(study)

    run(study, stores)
    trained = stores.studies.adapters(study.name)
    assert {a.spec.scope for a in trained if a.name.startswith("pair-")} == {"group"}
    groups = {one.tags.get("training_group") for one in tracker.runs.values() if one.tags.get("study") == study.name}
    assert groups <= {None, "unified", "cluster-00", "fan-out-1-of-2", "fan-out-2-of-2"}

    comparison = compare_study(study.name, stores, LOG)
    assert "pairs" in {result.method for result in comparison.methods}
    folder = stores.folder(study.name)
    assert "pairs" in (folder / "results" / "summary.csv").read_text()
    assert "pairs" in (folder / "results" / "report.html").read_text()
    arms = dict(plan_of(study, stores).methods["selective_routing"].arms_by_persona)
    assert all(any(name.startswith("pair-") for arm in of_one for name in arm.adapter_names) for of_one in arms.values())

    register_models(study.name, stores, LOG)
    models = {name for name in tracker.models if name.startswith("paired")}
    assert models == {"paired-unified", "paired-cluster-00", "paired-cluster-01", "paired-pairs"}

    version = tracker.models["paired-pairs"][-1]
    artifacts = tmp_path / "artifacts"
    for key, kept in ((key, version.adapters.folder(key)) for key in sorted(version.adapters.keys)):
        shutil.copytree(kept, artifacts / "adapters" / key)
    (artifacts / "routes.json").write_text(to_json(version.content))
    exported = export(artifacts, tmp_path / "exported", "vllm")
    first, second, *_ = stores.studies.dataset(study.name).ids
    assert exported.adapter_by_persona[first] == exported.adapter_by_persona[second]
    assert exported.adapter_by_persona[first].startswith("pair-000-")


@pytest.mark.whole
def test_the_method_of_the_documentation_is_trained_from_the_command_line_in_two_runs(
    pairs: Callable[[StudyView], MethodPlan], tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "pairs", Method(pairs))
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "no-services"))
    settings = tmp_path / "study.toml"
    settings.write_text(
        f"""name = "typed"
methods = ["pairs"]
[data]
train = 3
val = 2
test = 2
[data.synthetic]
cluster_sizes = [3, 4]
dialogues = 8
[clustering]
k = 2
sizes = [3, 4]
[model]
base = "{tiny_base_folder}"
[recipe]
rank = 2
epochs = 1
[runtime]
shards = 2
"""
    )
    cli.main(["train", "--config", str(settings)], standalone_mode=False)
    logs = tmp_path / "studies" / "typed" / "logs"
    assert sorted(file.name for file in logs.glob("*_training.log")) == ["fan_out_1_of_2_training.log", "fan_out_2_of_2_training.log"]


@pytest.mark.whole
def test_a_control_of_ones_own_is_in_the_verdict_and_never_the_champion(
    seven: Study, finished_stores: Stores, pairs: Callable[[StudyView], MethodPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Method(pairs, is_control=True, contrast_with="cluster", phrase="neighbours in pairs")
    monkeypatch.setitem(METHODS, "pairs", entry)
    study = replace(seven, name="held-against", methods=("cluster", "selective_routing", "pairs"), gate=replace(seven.gate, ladder=()))
    run(study, finished_stores)
    comparison = compare_study(study.name, finished_stores, LOG)
    assert comparison.champion != "pairs"
    contrasts = {contrast.method: contrast for contrast in comparison.contrasts if contrast.other == "pairs"}
    assert contrasts["cluster"].is_control
    assert "neighbours in pairs (" in comparison.sentence
    register_models(study.name, finished_stores, LOG)
    assert isinstance(finished_stores.tracker, MemoryTracker)
    assert "held-against-pairs" not in finished_stores.tracker.models
    plan = plan_of(study, finished_stores).methods["selective_routing"]
    assert not any(name.startswith("pair-") for _, arms in plan.arms_by_persona for arm in arms for name in arm.adapter_names)


def rows(means: dict[str, float]) -> list[EvaluationRow]:
    return [
        EvaluationRow(method, f"p{person}", 0, f"p{person}/{item}", "a", "b", "c", {"rouge_l": mean + 0.01 * person + 0.001 * item})
        for method, mean in means.items()
        for person in range(8)
        for item in range(3)
    ]


@pytest.mark.parametrize("control", controls())
@pytest.mark.parametrize("reference", ["unified", None])
def test_a_control_that_scores_best_is_not_crowned(control: str, reference: str | None) -> None:
    others = {"baseline": 0.3, "cluster": 0.5} | ({reference: 0.4} if reference else {})
    comparison = compare_methods(
        rows(others | {control: 0.9}), headline="rouge_l", higher_is_better={"rouge_l": True}, draws=200, rng=np.random.default_rng(0)
    )
    assert comparison.methods[0].method == control
    assert comparison.champion == ("cluster" if reference else None)


def test_a_study_of_controls_alone_is_refused(seven: Study) -> None:
    with pytest.raises(BadSettings, match="controls alone"):
        check(replace(seven, methods=("random_cluster", "unified_longer")))


def test_a_control_that_an_earlier_comparison_crowned_is_not_registered(seven: Study, finished_stores: Stores) -> None:
    outcome = finished_stores.studies.metadata(seven.name, ComparisonSummary)
    assert outcome is not None
    finished_stores.studies.save_metadata(seven.name, replace(outcome, champion="unified_longer"))
    with pytest.raises(BadData, match="no champion to register"):
        register_models(seven.name, finished_stores, LOG)


@pytest.mark.parametrize(
    ("contrast_with", "phrase", "problem"),
    [("cluster", "", "belong together"), (None, "neighbours in pairs", "belong together"), ("cluster", "pairs", "say is_control=True")],
)
def test_a_contrast_is_with_a_control_and_has_words(contrast_with: str | None, phrase: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Method(lambda _view: MethodPlan("m", (), ()), contrast_with=contrast_with, phrase=phrase)


def test_a_cause_is_of_the_gain_over_a_control() -> None:
    with pytest.raises(ValueError, match="name it with contrast_with"):
        Method(lambda _view: MethodPlan("m", (), ()), is_control=True, cause="neighbours are alike")


def test_the_claim_for_a_method_comes_from_the_entry_of_its_control(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Method(
        lambda _view: MethodPlan("m", (), ()),
        is_control=True,
        contrast_with="hybrid",
        phrase="neighbours in pairs",
        cause="everybody is answered by themselves",
    )
    monkeypatch.setitem(METHODS, "pairs", entry)
    means = {"unified": 0.4, "hybrid": 0.6, "pairs": 0.5}

    def verdict(means: dict[str, float]) -> str:
        settings = {"headline": "rouge_l", "higher_is_better": {"rouge_l": True}, "draws": 200}
        return compare_methods(rows(means), **settings, rng=np.random.default_rng(0)).sentence

    assert "and because everybody is answered by themselves: hybrid beats neighbours in pairs" in verdict(means)
    assert "that this is because everybody is answered by themselves is not shown" in verdict(means | {"pairs": 0.6})
    del means["pairs"]
    assert "without the control pairs nothing tests whether that is because everybody is answered by themselves" in verdict(means)


def test_the_stored_spec_says_all_that_a_name_said(seven: Study, finished_stores: Stores) -> None:
    fields = {a.name: json.loads(to_json(a.spec)) for a in finished_stores.studies.adapters(seven.name)}
    assert (fields["cluster-00"]["scope"], fields["cluster-00"]["cluster"]) == ("cluster", 0)
    assert fields["unified"]["scope"] == "everybody"
