"""Whole studies in one process: all methods and controls, several seeds, refined clusters, and clusterings that read adapters."""

import csv
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from clusterlora.clustering import PREREQUISITES
from clusterlora.metadata import TruthAgreement
from clusterlora.method_settings import RetrievalSettings
from clusterlora.ports.stores import Stores
from clusterlora.results.report import report_data
from clusterlora.settings import Study
from clusterlora.stages.adapter_folders import write_adapter_folders
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.refine import refine_clusters
from clusterlora.stages.register import register_models
from clusterlora.values import Clustering
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import LOG, TRAINED_HERE, plan_of, rows_of, run, run_rest, state_of


@pytest.fixture
def study(seven: Study) -> Study:
    return seven


def records(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.all
def test_every_method_and_control_runs_with_two_training_seeds_and_is_compared_once(study: Study, stores: Stores) -> None:
    recipe = replace(study.recipe, epochs=2, patience=1)
    shown = RetrievalSettings(counts=(0, 2), rankings=("bm25",))
    study = replace(study, methods=TRAINED_HERE, seeds=2, gate=replace(study.gate, ladder=()), recipe=recipe, retrieval=shown)
    run(study, stores)
    comparison = compare_study(study.name, stores, LOG)
    assert {result.method for result in comparison.methods} == set(TRAINED_HERE)

    rows = rows_of(study, stores)
    seeds = {method: {row.seed for row in rows if row.method == method} for method in TRAINED_HERE}
    assert {method for method, of in seeds.items() if of == {0}} == {"baseline", "few_shot", "baseline_described", "retrieval"}
    assert all(of == {0, 1} for method, of in seeds.items() if method not in {"baseline", "few_shot", "baseline_described", "retrieval"})
    by_seed = {
        seed: fmean(fmean(r.scores["nll"] for r in rows if (r.method, r.persona_id, r.seed) == ("unified", p, seed)) for p in people)
        for people in [{row.persona_id for row in rows}]
        for seed in (0, 1)
    }
    assert by_seed[0] != by_seed[1]
    assert comparison.method("unified").means["nll"] == pytest.approx(fmean(by_seed.values()))
    read = {result.method: result.means["prompt_tokens"] for result in comparison.methods}
    assert read["unified"] == read["baseline"] == read["cluster"] == read["prefix"]
    assert read["few_shot"] > read["unified"], "three exchanges more are read before every answer"

    register_models(study.name, stores, LOG)
    assert isinstance(stores.tracker, MemoryTracker)
    assert not any(".s1" in name for name in stores.tracker.models), "further seeds are for the comparison only"
    controls = [name for name in stores.tracker.models if name.startswith(("small-random", "small-unified-"))]
    assert not controls, "what only controls answer with is for the comparison only"
    assert "small-cluster-00" in stores.tracker.models
    runs = [run for run in stores.tracker.runs.values() if "training_group" in run.tags]
    assert {run.tags["method"] for run in runs if run.name == "unified"} == {"unified"}
    tagged_methods = {method for run in runs for method in run.tags["method"].split(", ")}
    assert {"unified", "cluster", "per_persona", "hybrid", "cluster_hybrid", "prefix", "merge", "random_cluster"} <= tagged_methods
    folders = {one.folder for one in write_adapter_folders(study.name, stores.folder(study.name) / "models", stores)}
    assert stores.folder(study.name) / "models" / "prefixes" / "prefix_0000" in folders


@pytest.mark.whole
def test_of_several_seeds_the_report_counts_and_quotes_the_first_and_the_rows_tell_them_apart(
    study: Study, finished_stores: Stores
) -> None:
    stores, study = finished_stores, replace(study, name="seeded", methods=("unified", "per_persona"), seeds=3)
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    run_rest(study, stores)
    comparison = compare_study(study.name, stores, LOG)
    rows = rows_of(study, stores)
    read = report_data(state_of(study, stores), plan_of(study, stores), stores, comparison, rows)
    assert [(curve.title, curve.complete) for curve in read.curves] == [("unified", True), ("per_persona, mean of 7 adapters", True)]

    adapter_by_name = {adapter.name: adapter for adapter in stores.studies.adapters(study.name)}
    assert {"unified", "unified.s1", "unified.s2"} <= adapter_by_name.keys()
    cost = {cost.method: cost for cost in read.costs}
    unified = adapter_by_name["unified"]
    assert (cost["unified"].n_adapters, cost["unified"].n_bytes) == (1, unified.n_bytes)
    assert (cost["unified"].train_tokens, cost["unified"].train_seconds) == (unified.train_tokens, unified.seconds)
    assert cost["per_persona"].n_adapters == 7

    first = {(row.method, row.persona_id, row.item_id): (row.text, row.scores["embedding_similarity"]) for row in rows if row.seed == 0}
    quoted = {(a.method, e.persona_id, e.item_id): (a.text, a.score) for e in read.examples for a in e.answers}
    assert quoted == {key: (first[key][0], round(first[key][1], 6)) for key in quoted}
    assert len(quoted) == 2 * 7 * 3, "three items of everybody"

    written = records(stores.folder(study.name) / "results" / "rows.csv")
    assert len({(row["method"], row["seed"], row["persona_id"], row["item_id"]) for row in written}) == len(written) == len(rows)


@pytest.mark.whole
def test_controls_differ_from_what_they_control_in_one_thing(study: Study, stores: Stores) -> None:
    study = replace(study, methods=TRAINED_HERE)
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    plan = plan_of(study, stores)
    sizes = sorted(len(a.persona_ids) for a in plan.methods["random_cluster"].adapters)
    assert sizes == sorted(len(a.persona_ids) for a in plan.methods["cluster"].adapters if a.name != "unified")
    assert plan.specs["unified-longer"].recipe == replace(study.recipe, epochs=2 * study.recipe.epochs)
    assert plan.specs["unified-described"] == replace(plan.specs["unified"], name="unified-described", persona_in_prompt=True)
    assert plan.keys["unified-described"] != plan.keys["unified"]
    arms = {composition for _, compositions in plan.methods["selective_routing"].arms_by_persona for composition in compositions}
    assert not {name for composition in arms for name in composition.adapter_names if name.startswith(("random", "unified-"))}


@pytest.mark.whole
def test_refined_clusters_are_trained_again_before_what_depends_on_them(study: Study, stores: Stores) -> None:
    study = replace(
        study,
        methods=("unified", "cluster", "merge"),
        clustering=replace(study.clustering, sizes=None, min_size=2, refinement_rounds=3),
        recipe=replace(study.recipe, epochs=3, learning_rate=2e-2),
    )
    prepare_study(study, stores, LOG)
    people = study_people(study, stores)
    stores.studies.save_clustering(study.name, Clustering("given", (people[:3], people[3:])))
    run(study, stores)

    clustering = stores.studies.clustering(study.name)
    assert clustering is not None
    assert sorted(p for ids in clustering.members for p in ids) == sorted(people)
    assert min(clustering.sizes) >= 2
    moved = [n for name, n in clustering.quality if name.startswith("moved_in_round")]
    assert 1 <= len(moved) <= 3
    assert len(moved) == 3 or moved[-1] == 0, "it ends when nobody moves"
    plan = plan_of(study, stores)
    keys = {adapter.key for adapter in stores.studies.adapters(study.name)}
    assert set(plan.keys.values()) <= keys, "what answers was trained on the refined clusters"
    n_merges = sum(adapter.name.startswith("merged") for adapter in stores.studies.adapters(study.name))
    assert n_merges == 2, "merges were made once, of the clusters that stayed"
    assert not refine_clusters(study.name, stores, LOG)


@pytest.mark.whole
def test_learning_curves_come_from_the_database_and_are_called_incomplete_where_it_has_none(study: Study, finished_stores: Stores) -> None:
    """Hosts that share the database and no folder show the same curves."""
    stores = replace(finished_stores, home=finished_stores.home / "elsewhere")
    comparison, rows = compare_study(study.name, stores, LOG), rows_of(study, stores)
    unified = next(adapter for adapter in stores.studies.adapters(study.name) if adapter.name == "unified")
    (recorded,) = stores.studies.learning_curves(study.name)[unified.key]
    assert len(recorded.losses) == unified.steps
    assert recorded.losses[-1] == pytest.approx(unified.last_loss, rel=1e-5)
    (curve,) = [
        curve
        for curve in report_data(state_of(study, stores), plan_of(study, stores), stores, comparison, rows).curves
        if curve.title == "unified"
    ]
    assert curve.complete
    assert curve.points == tuple(enumerate(recorded.losses, start=1))

    stores.studies.forget_adapter(unified.key)
    stores.studies.save_adapter(study.name, unified)
    (ends,) = [
        curve
        for curve in report_data(state_of(study, stores), plan_of(study, stores), stores, comparison, rows).curves
        if curve.title == "unified"
    ]
    assert not ends.complete
    assert ends.points == ((1, unified.first_loss), (unified.steps, unified.last_loss))


def study_people(study: Study, stores: Stores) -> tuple[str, ...]:
    return tuple(sorted(stores.studies.dataset(study.name).ids))


@pytest.mark.whole
@pytest.mark.parametrize("algorithm", sorted(PREREQUISITES))
def test_a_clustering_that_reads_adapters_gets_them_trained_first(study: Study, finished_stores: Stores, algorithm: str) -> None:
    stores, reading = finished_stores, replace(study.clustering, algorithm=algorithm)
    study = replace(study, name="reading", methods=("unified", "cluster"), clustering=reading)
    run(study, stores)
    clustering = stores.studies.clustering(study.name)
    assert clustering is not None
    assert clustering.algorithm == algorithm
    assert clustering.sizes == (3, 4)
    trained = [adapter.name for adapter in stores.studies.adapters(study.name)]
    assert trained.count("unified") == 1, "the clustering and the gate share one unified adapter"
    agreement = stores.studies.metadata(study.name, TruthAgreement)
    assert agreement is not None
    assert -1 <= agreement.adjusted_rand_index <= 1
