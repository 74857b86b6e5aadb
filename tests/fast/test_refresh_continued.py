"""What a refresh goes on from: every adapter answers on what it was trained on, and clusters made anew learn from their own people."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clusterlora.clustering.cluster import cluster_personas
from clusterlora.clustering.features import Sources
from clusterlora.metadata import ComparisonSummary, RefreshOutcome, Regrouping
from clusterlora.methods.last_champion import is_kept_from_before
from clusterlora.models.model_cache import embedder
from clusterlora.planning.study_state import read_state
from clusterlora.planning.work_plan import WorkPlan, work_plan
from clusterlora.ports.stores import Stores
from clusterlora.settings import PreparedStudy, Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.refresh import next_refresh
from clusterlora.values import Clustering, Route, TrainedAdapter
from tests.fast.test_refresh import end, later, write
from tests.fixtures.stages import LOG, train_named
from tests.fixtures.studies import copy_of_stores, memory_stores


def call_finished(study: Study, stores: Stores, champion: str) -> None:
    """Record a clustered study as finished: its adapters as trained, the last arm of each method as chosen, this method as champion."""
    plan, studies = work_plan(read_state(study.name, stores)), stores.studies
    for name, spec in plan.specs.items():
        studies.save_adapter(study.name, TrainedAdapter(plan.keys[name], name, spec, 1, 1, 1.0, 1.0, 1.0, 1))
    methods = plan.methods.items()
    studies.save_routes(study.name, [Route(method, p, arms[-1]) for method, one in methods for p, arms in one.arms_by_persona])
    studies.save_metadata(study.name, ComparisonSummary(champion, "made up"))
    studies.save_metadata(study.name, RefreshOutcome(moved=True, challenger=champion, reason="made up", on_new=None, on_old=None))
    studies.set_status(study.name, "finished")


def stacked(plan: WorkPlan) -> Iterator[tuple[str, str, str]]:
    """Yield (person, key of the lower adapter, key of the upper one) of every composition of two adapters."""
    for method in plan.methods.values():
        for person, compositions in method.arms_by_persona:
            for names in {one.adapter_names for one in compositions}:
                if len(names) == 2:
                    yield person, plan.keys[names[0]], plan.keys[names[1]]


@pytest.mark.whole
def test_an_adapter_on_another_answers_on_the_one_that_it_was_trained_on_over_many_refreshes(seven: Study, tmp_path: Path) -> None:
    methods = ("unified", "cluster", "hybrid", "cluster_hybrid", "selective_routing")
    study, stores = replace(seven, methods=methods, cluster_init="unified"), memory_stores(tmp_path)
    trained_on: dict[str, str] = {}
    key_before: dict[str, str] = {}
    unified: list[str] = []
    for number, person in enumerate((None, "persona_000", "persona_001", "persona_000", "persona_001")):
        if person is not None:
            news = write(tmp_path / f"{number}.jsonl", {person: later(seven, seed=4 + number)[person]})
            study = next_refresh("small", news, stores)
            assert set(study.methods) >= set(methods)
        prepare_study(study, stores, LOG)
        cluster_study(study.name, stores, LOG)
        call_finished(study, stores, "selective_routing")
        plan = work_plan(read_state(study.name, stores))
        for spec in plan.specs.values():
            if spec.frozen_adapter and not spec.kept:
                trained_on[plan.keys[spec.name]] = plan.keys[spec.frozen_adapter]
            if spec.kept:
                assert spec.init_from is None
            elif person is not None:
                assert spec.init_from is not None, "only who has news learns"
                assert plan.keys[spec.init_from] == key_before[spec.label]
        for who, lower, upper in stacked(plan):
            assert lower == trained_on[upper], f"{who} in {study.name}"
        key_before = {spec.label: plan.keys[spec.name] for spec in plan.specs.values()}
        unified.append(plan.keys["unified"])
        assert not any(name.startswith("last-last-") for name in plan.specs), "names would grow with every refresh"
    assert len(set(unified)) == 5
    plan = work_plan(read_state("small.r4", stores))
    lower = {p: {plan.keys[name] for arm in arms for name in arm.adapter_names[:-1]} for p, arms in plan.methods["hybrid"].arms_by_persona}
    assert (lower["persona_000"], lower["persona_001"], lower["persona_006"]) == ({unified[3]}, {unified[4]}, {unified[0]})


@pytest.fixture
def grouped_wrongly(seven: Study, tmp_path: Path) -> tuple[PreparedStudy, Stores]:
    """Return a refresh, not begun, of sixteen people, two of whom its champion has in each other's cluster, and its stores."""
    data = replace(seven.data, train=2, val=1, test=1, synthetic=replace(seven.data.synthetic, cluster_sizes=(8, 8), dialogues=5))
    study = replace(
        seven,
        methods=("unified", "cluster", "cluster_hybrid", "selective_routing"),
        data=data,
        clustering=replace(seven.clustering, sizes=None),
        refresh=replace(seven.refresh, misfits=0.05),
        evaluation=replace(seven.evaluation, max_new_tokens=1),
    )

    def fill(stores: Stores) -> None:
        prepare_study(study, stores, LOG)
        right = cluster_personas(stores.studies.dataset(study.name), study.clustering, Sources(embedder(study.model)), LOG)
        (a, *first), (b, *second) = right.members
        stores.studies.save_clustering(study.name, replace(right, members=((b, *first), (a, *second))))
        train_named(study, stores, tuple(work_plan(read_state(study.name, stores)).specs))
        call_finished(study, stores, "selective_routing")

    stores = copy_of_stores("grouped-wrongly", fill, tmp_path)
    news = {p: dialogues for p, dialogues in later(study).items() if p == "persona_000"}
    return next_refresh("small", write(tmp_path / "more.jsonl", news), stores), stores


@pytest.mark.whole
def test_clustered_anew_every_cluster_is_trained_from_the_start_on_its_own_people(grouped_wrongly: tuple[PreparedStudy, Stores]) -> None:
    study, stores = grouped_wrongly
    end(study, stores)
    state, before = read_state(study.name, stores), read_state("small", stores)
    assert state.regrouping is not None
    assert state.regrouping.anew
    assert state.clustering is not None
    assert state.start is not None
    assert set(state.clustering.members) != set(state.start.members)
    assert "own" in [verdict.rung for verdict in state.verdicts], "the gate is asked again"
    plan, keys_before = work_plan(state), {adapter.key for adapter in before.adapters}
    of_clusters = [spec for spec in plan.specs.values() if spec.scope == "cluster" and not is_kept_from_before(spec)]
    assert {spec.label for spec in of_clusters} == {"cluster-00", "cluster-01", "cluster-residual-00", "cluster-residual-01"}
    for spec in of_clusters:
        assert spec.persona_ids == state.clustering.members[spec.cluster or 0]
        assert (spec.kept, spec.learns_from) == (None, ()), f"{spec.name} learns all from everybody in it"
        assert spec.init_from in (None, "unified")
        assert plan.keys[spec.name] not in keys_before
        assert plan.keys[spec.name] in {adapter.key for adapter in state.adapters}, "it was trained"
    assert plan.specs["unified"].init_from == "last-unified", "what is no cluster's goes on"
    assert state.moved is not None


@pytest.mark.whole
def test_clustered_anew_nobody_is_answered_by_an_adapter_that_has_never_learnt_from_them(
    grouped_wrongly: tuple[PreparedStudy, Stores],
) -> None:
    study, stores = grouped_wrongly
    prepare_study(study, stores, LOG)
    start = read_state(study.name, stores).start
    assert start is not None
    # Somebody without news joins the cluster in which nobody has news, which keeps its number.
    with_news = next(k for k, ids in enumerate(start.members) if "persona_000" in ids)
    other = 1 - with_news
    mover = next(p for p in start.members[with_news] if p != "persona_000")
    members = tuple(tuple(p for p in ids if p != mover) if k == with_news else (*ids, mover) for k, ids in enumerate(start.members))
    stores.studies.save_clustering(study.name, Clustering("responses", members))
    stores.studies.save_metadata(study.name, Regrouping(moved=((mover, with_news, other),), n_personas=16, anew=True))
    plan = work_plan(read_state(study.name, stores))
    for name in (f"cluster-0{other}", f"cluster-residual-0{other}"):
        spec = plan.specs[name]
        assert mover in spec.persona_ids
        assert (spec.kept, spec.init_from, spec.learns_from) == (None, None, ())


def test_what_people_said_before_they_changed_is_neither_learnt_nor_asked_from_then_on(
    grouped_wrongly: tuple[PreparedStudy, Stores], tmp_path: Path
) -> None:
    study, stores = grouped_wrongly
    prepare_study(study, stores, LOG)
    whole = stores.studies.dataset(study.name).by_id()["persona_000"]
    news = set(dict(read_state(study.name, stores).news.dialogues)["persona_000"])  # pyrefly: ignore[missing-attribute]
    old = tuple(sorted(d.id for d in whole.dialogues if d.id not in news))
    clustering = stores.studies.clustering("small")
    assert clustering is not None
    stores.studies.save_clustering(study.name, clustering)
    moved = (("persona_000", 0, 1),)
    stores.studies.save_metadata(study.name, Regrouping(moved=moved, n_personas=16, anew=True, outdated=(("persona_000", old),)))
    state = read_state(study.name, stores)
    assert {d.id for d in state.dataset.by_id()["persona_000"].dialogues} == news
    (mine,) = (spec for spec in work_plan(state).specs.values() if spec.label == "unified" and spec.init_from)
    assert {one for p, ids in mine.learns_from for one in ids if p == "persona_000"} <= news, "nothing old of theirs is replayed"
    call_finished(study, stores, "unified")
    after = next_refresh("small", write(tmp_path / "later.jsonl", {"persona_001": later(study, seed=9)["persona_001"]}), stores)
    prepare_study(after, stores, LOG)
    assert {d.id for d in read_state(after.name, stores).dataset.by_id()["persona_000"].of_split("train")} <= news
    assert len(stores.studies.dataset(after.name).by_id()["persona_000"].dialogues) == len(whole.dialogues), "nothing is deleted"
