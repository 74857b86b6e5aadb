"""Merging personal adapters per cluster after a study: what is merged, compared and registered, and that nothing is trained for it."""

from dataclasses import replace
from pathlib import Path

import pytest

from clusterlora.errors import BadData, BadSettings
from clusterlora.metadata import Cut, Decision, GateDecisions, Tuning, TuningRound
from clusterlora.method_settings import MergeSettings
from clusterlora.planning.study_state import read_state
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.requests import EvaluationRequest, MergeRequest
from clusterlora.settings import Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.merge import merge
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.register import register_models
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import Notes, plan_of, study_of_five, train_named

LOG = SilentLog()
PERSONAL = tuple(f"persona-{number:04d}" for number in range(5))
TIES = MergeSettings(kind="ties", density=0.5)


@pytest.fixture
def study(tiny_base_folder: Path, stores: Stores) -> Study:
    return study_of_five(tiny_base_folder, stores)


def request(study: Study, merging: MergeSettings = TIES) -> MergeRequest:
    return MergeRequest(study_name=study.name, merging=merging)


def test_merging_needs_the_personal_adapters(study: Study, stores: Stores) -> None:
    with pytest.raises(BadData, match=r"has 0 of 5 personal adapters, persona-0000 is missing; train them"):
        merge(request(study), stores, LOG)
    assert [name for name, *_ in stores.studies.studies()] == ["tried"]


@pytest.mark.whole
def test_another_merge_is_a_study_of_its_own_that_trains_nothing(study: Study, stores: Stores) -> None:
    train_named(study, stores, PERSONAL)
    assert merge(request(study), stores, LOG) == "tried-ties-0.5"
    adapters = {adapter.name: adapter for adapter in stores.studies.adapters("tried-ties-0.5")}
    assert adapters.keys() == {*PERSONAL, "merged-00", "merged-01"}
    assert stores.studies.clustering("tried-ties-0.5") == stores.studies.clustering("tried")
    assert stores.studies.attempts("tried-ties-0.5") == ()
    before = {adapter.name: adapter.weights_sha256 for adapter in adapters.values()}
    merge(request(study), stores, LOG)
    assert {adapter.name: adapter.weights_sha256 for adapter in stores.studies.adapters("tried-ties-0.5")} == before
    merge(request(study, MergeSettings()), stores, LOG)
    average = {adapter.name: adapter.weights_sha256 for adapter in stores.studies.adapters("tried-average")}
    assert {average[name] == before[name] for name in PERSONAL} == {True}
    assert {average[name] == before[name] for name in ("merged-00", "merged-01")} == {False}


@pytest.mark.whole
def test_the_merge_of_a_studys_own_settings_belongs_to_it(study: Study, stores: Stores) -> None:
    own = replace(study, name="own", methods=("unified", "merge"), merging=TIES)
    prepare_study(own, stores, LOG)
    cluster_study(own.name, stores, LOG)
    train_named(own, stores, PERSONAL)
    assert merge(request(own), stores, LOG) == "own"
    assert {"merged-00", "merged-01"} <= {adapter.name for adapter in stores.studies.adapters("own")}


@pytest.mark.whole
def test_a_merge_is_compared_with_the_studys_methods_and_registered(study: Study, stores: Stores) -> None:
    train_named(study, stores, ("unified", *PERSONAL))
    merged = merge(request(study), stores, LOG)
    evaluate(EvaluationRequest(study_name=merged), stores, LOG)
    comparison = compare_study(merged, stores, LOG)
    assert {result.method for result in comparison.methods} == {"unified", "per_persona", "merge"}
    register_models(merged, stores, LOG)
    assert isinstance(stores.tracker, MemoryTracker)
    assert {"tried-ties-0.5-merged-00", "tried-ties-0.5-merged-01"} <= stores.tracker.models.keys()
    assert not any(name.startswith("tried-merged") for name in stores.tracker.models), "the study itself compared no merge"


@pytest.mark.whole
def test_a_merge_whose_name_would_be_too_long_is_refused(study: Study, stores: Stores) -> None:
    long = replace(study, name="a" * 45)
    prepare_study(long, stores, LOG)
    cluster_study(long.name, stores, LOG)
    train_named(long, stores, PERSONAL)
    with pytest.raises(BadSettings, match="longer than 48 characters"):
        merge(request(long), stores, LOG)


@pytest.mark.whole
def test_a_merge_goes_by_what_its_study_decided_on(study: Study, stores: Stores) -> None:
    tuned = replace(study, name="tuned", tune=2)
    prepare_study(tuned, stores, LOG)
    cluster_study(tuned.name, stores, LOG)
    drawn = stores.studies.metadata(tuned.name, Tuning)
    assert drawn is not None
    second_is_better = tuple(TuningRound(method, 5, ((0, 2.0), (1, 1.0))) for method in ("unified", "per_persona"))
    stores.studies.save_metadata(tuned.name, replace(drawn, steps=(second_is_better,)))
    cut = Cut(of_personas=5, n_personas=5, train=1, val=1, test=1, whole=100.0, expected=50.0, fits=True)
    stores.studies.save_metadata(tuned.name, cut)
    stores.studies.save_metadata(tuned.name, GateDecisions((Decision("continue", by="me"),)))
    train_named(tuned, stores, PERSONAL)
    keys = {adapter.name: adapter.key for adapter in stores.studies.adapters(tuned.name)}
    assert merge(request(tuned), stores, LOG) == "tuned-ties-0.5"
    derived = {adapter.name: adapter for adapter in stores.studies.adapters("tuned-ties-0.5")}
    assert {name: derived[name].key for name in PERSONAL} == keys, "nothing is trained, and no other adapters are merged"
    assert derived["merged-00"].spec.recipe == derived[PERSONAL[0]].spec.recipe == drawn.recipes[1].recipe
    own, other = (read_state(name, stores) for name in (tuned.name, "tuned-ties-0.5"))
    assert (other.decisions, other.cut, other.dataset) == (own.decisions, own.cut, own.dataset)


@pytest.mark.whole
def test_every_training_is_merged_and_one_that_a_method_lacks_is_not_compared(study: Study, stores: Stores) -> None:
    twice = replace(study, name="twice", seeds=2)
    prepare_study(twice, stores, LOG)
    cluster_study(twice.name, stores, LOG)
    plan = plan_of(twice, stores)
    personal = [spec.name for methods in plan.seeds for spec in methods["per_persona"].adapters]
    train_named(twice, stores, ("unified", *PERSONAL))
    with pytest.raises(BadData, match="has 5 of 10 personal adapters"):
        merge(request(twice), stores, LOG)
    train_named(twice, stores, personal)
    merged = merge(request(twice), stores, LOG)
    assert sum(bool(adapter.spec.merge_of) for adapter in stores.studies.adapters(merged)) == 4
    log = Notes()
    evaluate(EvaluationRequest(study_name=merged), stores, log)
    assert "training 2 of 2 is not compared: unified lack adapters of it" in log.notes
    assert {route.seed for route in stores.studies.routes(merged)} == {0}
    train_named(twice, stores, [spec.name for methods in plan.seeds for spec in methods["unified"].adapters])
    merge(request(twice), stores, LOG)
    evaluate(EvaluationRequest(study_name=merged), stores, LOG)
    seeds_of = {name: {route.seed for route in stores.studies.routes(merged) if route.method == name} for name in ("unified", "merge")}
    assert seeds_of == {"unified": {0, 1}, "merge": {0, 1}}
