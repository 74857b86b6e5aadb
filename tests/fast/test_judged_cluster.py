"""Which cluster the gate judges, and what is said of it before anything is trained."""

from dataclasses import replace
from typing import Any

import pytest

from clusterlora.gate.judged_cluster import judged_cluster, words
from clusterlora.planning.gate_step import next_gate_step
from clusterlora.planning.ladder import gated, refused
from clusterlora.planning.study_state import read_state
from clusterlora.planning.training_groups import remaining_groups
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.stores import Stores
from clusterlora.settings import ClusteringSettings, GateSettings, Study
from clusterlora.stages.evaluate import compared_personas
from clusterlora.stages.judge import measure_ceiling
from clusterlora.stages.prepare import prepare_study
from clusterlora.values import Clustering, Criterion, Verdict
from tests.fixtures.stages import LOG

FREE = ClusteringSettings()


@pytest.mark.parametrize(
    ("sizes", "judged"),
    [
        ((3, 3, 12, 54, 128), 2),
        ((3, 3, 3, 3, 201), 4),
        ((16, 52, 25, 35, 72), 3),
        ((10, 50, 90), 1),
        ((10, 20, 40, 60), 2),
        ((9, 9, 9), 0),
        ((3, 4, 7), None),
        ((60,), None),
    ],
)
def test_the_gate_judges_the_cluster_whose_size_is_nearest_the_median_of_those_with_enough_people(
    sizes: tuple[int, ...], judged: int | None
) -> None:
    assert judged_cluster(sizes, FREE) == judged
    assert (f"judges cluster {judged} of" if judged is not None else "There is no gate") in words(sizes, FREE)


def test_with_given_sizes_the_gate_judges_cluster_0_and_says_when_it_has_few_people() -> None:
    mission = ClusteringSettings(k=5, sizes=(16, 52, 25, 35, 72))
    assert judged_cluster((16, 52, 25, 35, 72), mission) == 0
    assert words((16, 52, 25, 35, 72), mission) == "The gate judges cluster 0, whose size is given: 16 people."
    few = ClusteringSettings(k=2, sizes=(3, 4))
    assert judged_cluster((3, 4), few) == 0
    assert "3 people, fewer than the 8 without which a verdict is luck" in words((3, 4), few)


def test_a_small_cluster_near_the_median_gives_way_and_the_sentence_says_why() -> None:
    assert "of those with at least 8, fewer being too few" in words((3, 3, 3, 3, 201), FREE)


def with_sizes(study: Study, stores: Stores, sizes: tuple[int, ...], **changes: Any) -> Study:
    """Prepare a study whose people are in clusters of these sizes."""
    study = replace(study, clustering=replace(study.clustering, k=None, sizes=None), **changes)
    ids = iter(prepare_study(study, stores, LOG).ids)
    stores.studies.save_clustering(study.name, Clustering("auto", tuple(tuple(next(ids) for _ in range(size)) for size in sizes)))
    return study


def test_a_study_whose_clusters_are_too_small_for_a_gate_trains_them_all_without_one(seven: Study, stores: Stores) -> None:
    study = with_sizes(seven, stores, (3, 4), gate=GateSettings(worst_persona=1.0))
    state = read_state(study.name, stores)
    assert not gated(state)
    assert measure_ceiling(study.name, stores) is None, "no gate asks for the threshold"
    assert next_gate_step(state) is None
    assert not refused(state)
    trained = {name for wave in remaining_groups(state) for group in wave for name in group.adapters}
    assert {"cluster-00", "cluster-01", "unified"} <= trained


def test_a_study_without_clusters_goes_on_with_the_methods_that_need_none(seven: Study, stores: Stores) -> None:
    methods = ("baseline", "unified", "per_persona", "cluster", "cluster_hybrid", "merge", "selective_routing", "random_cluster")
    study = with_sizes(seven, stores, (7,), methods=methods)
    state = read_state(study.name, stores)
    assert state.settings.methods == ("baseline", "unified", "per_persona", "selective_routing")
    assert not gated(state)
    assert not [spec for spec in work_plan(state).specs.values() if spec.scope == "cluster"]
    assert compared_personas(state) == state.dataset.ids
    assert {"unified"} <= {name for wave in remaining_groups(state) for group in wave for name in group.adapters}


@pytest.mark.whole
def test_the_judged_cluster_alone_is_compared_after_a_refusal(seven: Study, stores: Stores) -> None:
    people = replace(seven.data.synthetic, cluster_sizes=(10, 14, 30))
    study = with_sizes(
        seven, stores, (10, 14, 30), data=replace(seven.data, synthetic=people), gate=replace(seven.gate, ladder=(), on_failure="stop")
    )
    step = next_gate_step(read_state(study.name, stores))
    assert step is not None
    assert step.cluster == 1
    assert {name for wave in step.waves for group in wave for name in group.adapters} == {"unified", "cluster-01"}
    failed = Criterion("above_unified", -1.0, 0.0, passed=False, ci_low=None, ci_high=None, explanation="")
    stores.studies.save_verdict(study.name, Verdict("own", "cluster-01", (failed,), n_personas=14, n_items=28))
    state = read_state(study.name, stores)
    assert state.clustering is not None
    assert compared_personas(state) == state.clustering.members[1]
