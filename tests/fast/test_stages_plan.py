"""The trainings after the gate are partitioned evenly, lost adapters included; the scale is measured once per study."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterlora.metadata import ReferencePoints
from clusterlora.planning.ladder import OWN
from clusterlora.planning.training_groups import remaining_groups
from clusterlora.planning.work_plan import judged_adapters
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.settings import (
    ClusteringSettings,
    DataSettings,
    EvaluationSettings,
    GateSettings,
    ModelSettings,
    RuntimeSettings,
    Study,
    SyntheticSettings,
)
from clusterlora.stages import scale as scale_stage
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.scale import scale
from clusterlora.values import Dataset, TrainedAdapter, Verdict
from tests.fixtures.stages import missing_groups, plan_of, state_of

LOG = SilentLog()


@pytest.fixture
def study(tiny_base_folder: Path, stores: Stores) -> Study:
    study = Study(
        name="small",
        methods=("baseline", "unified", "per_persona", "cluster"),
        data=DataSettings(train=3, val=2, test=2, synthetic=SyntheticSettings(cluster_sizes=(3, 4, 5), dialogues=8)),
        model=ModelSettings(base=str(tiny_base_folder)),
        recipe=Recipe(rank=2, epochs=1),
        clustering=ClusteringSettings(k=3, sizes=(3, 4, 5)),
        gate=GateSettings(ladder=()),
        runtime=RuntimeSettings(shards=2),
    )
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    return study


def pass_the_gate(study: Study, stores: Stores) -> None:
    """Record what the gate trains as trained, and a verdict that passes."""
    plan = plan_of(study, stores)
    for group in missing_groups(study, stores, judged_adapters(plan)):
        for name in group.adapters:
            stores.studies.save_adapter(study.name, TrainedAdapter(plan.keys[name], name, plan.specs[name], 3, 90, 1.0, 0.5, 0.4, 1))
    stores.studies.save_verdict(study.name, Verdict(OWN.name, "cluster-00", (), n_personas=3, n_items=6))


def test_the_trainings_after_the_gate_are_partitioned_evenly(study: Study, stores: Stores) -> None:
    pass_the_gate(study, stores)
    plan = plan_of(study, stores)
    (groups,) = remaining_groups(state_of(study, stores))
    assert {name for group in groups for name in group.adapters} == plan.specs.keys() - {"unified", "cluster-00"}
    loads = [sum(len(plan.specs[name].persona_ids) for name in group.adapters) for group in groups]
    assert len(loads) == 2
    assert max(loads) - min(loads) <= 1, "12 people for themselves and 9 in clusters are 21 trainings of a person"


def test_an_adapter_of_the_gate_that_got_lost_is_in_one_of_the_training_groups(study: Study, stores: Stores) -> None:
    stores.studies.save_verdict(study.name, Verdict(OWN.name, "cluster-00", (), n_personas=3, n_items=6))
    trained = [name for wave in remaining_groups(state_of(study, stores)) for group in wave for name in group.adapters]
    assert sorted(trained) == sorted(plan_of(study, stores).specs)


def test_a_later_wave_is_called_after_it_also_where_only_part_of_the_first_is_left(study: Study, stores: Stores) -> None:
    # Without clusters there is no gate, so the fan-out trains `unified`, on which the residuals of `hybrid` are trained.
    study = replace(study, name="waves", methods=("unified", "per_persona", "hybrid"))
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    plan = plan_of(study, stores)
    first, second = remaining_groups(state_of(study, stores))
    assert [group.name for group in first] == ["fan-out-1-of-2", "fan-out-2-of-2"]
    assert [group.name for group in second] == ["fan-out-1-of-2-wave-2", "fan-out-2-of-2-wave-2"]
    assert [group.title for group in second] == ["fan-out 1/2, wave 2", "fan-out 2/2, wave 2"]
    residuals = {group.name: group.adapters for group in second}
    assert {plan.specs[name].frozen_adapter for names in residuals.values() for name in names} == {"unified"}

    def left() -> dict[str, tuple[str, ...]]:
        return {group.name: group.adapters for wave in remaining_groups(state_of(study, stores)) for group in wave}

    *done, last = [name for group in first for name in group.adapters if name != "unified"]
    for name in ("unified", *done):
        stores.studies.save_adapter(study.name, TrainedAdapter(plan.keys[name], name, plan.specs[name], 3, 90, 1.0, 0.5, 0.4, 1))
    (of_last,) = (group.name for group in first if last in group.adapters)
    assert left() == {of_last: (last,), **residuals}, "what can be trained at once now is called as it was"


def test_the_scale_is_measured_once_and_again_for_other_people(study: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    floor = scale_stage.floor

    def counted(references: dict[str, list[str]], embedder: Any) -> float:
        measured.append(len(references))
        return floor(references, embedder)

    monkeypatch.setattr(scale_stage, "floor", counted)
    everyone = stores.studies.dataset(study.name).ids
    first = scale(state_of(study, stores), stores, everyone)
    assert first == scale(state_of(study, stores), stores, everyone[::-1]), "in whatever order they are named"
    assert first.floor is not None
    assert first.floor_same_prompt is not None
    assert first.floor < first.floor_same_prompt <= 1
    assert scale(state_of(study, stores), stores, everyone[:3]) != first, "after a refused gate cluster 0 alone is compared"
    assert measured == [12, 3]


@pytest.mark.whole
def test_personas_without_test_items_are_left_out_of_the_scale(study: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = stores.studies.dataset(study.name)
    first, *others = dataset.personas
    untested = replace(first, dialogues=tuple(d for d in first.dialogues if d.split != "test"))
    monkeypatch.setattr(stores.studies, "dataset", lambda _: Dataset((untested, *others)))
    assert scale(state_of(study, stores), stores, dataset.ids) == scale(state_of(study, stores), stores, dataset.ids[1:])


def test_one_person_and_other_metrics_have_no_scale(study: Study, stores: Stores) -> None:
    everyone = stores.studies.dataset(study.name).ids
    assert scale(state_of(study, stores), stores, everyone[:1]) == ReferencePoints()
    assert scale(state_of(replace(study, evaluation=EvaluationSettings(headline="rouge_l")), stores), stores, everyone) == ReferencePoints()
