"""A whole study in one process: every stage and its results."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from math import isnan
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from clusterlora.data.prompts import items
from clusterlora.engine.job import TrainingResult
from clusterlora.engine.stacked import read_adapter
from clusterlora.errors import BadData, OutOfMemory, UnknownName
from clusterlora.evaluation.metrics import METRICS
from clusterlora.metadata import ComparisonSummary
from clusterlora.method_settings import MergeSettings
from clusterlora.planning.attempts import next_request
from clusterlora.planning.ladder import OWN, decided_rung, refused, rungs
from clusterlora.planning.training_groups import gate_groups, remaining_groups
from clusterlora.planning.work_plan import judged_adapters
from clusterlora.ports.stores import Stores
from clusterlora.progress import timing
from clusterlora.registry.routing import routing_table
from clusterlora.requests import EvaluationRequest, TrainingGroup, TrainRequest
from clusterlora.serving.router import Router
from clusterlora.settings import ClusteringSettings, Rung, RuntimeSettings, Study, prepared
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.judge import verdict_on
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.register import register_models
from clusterlora.stages.train import log_name, train_group
from clusterlora.stores.json_codec import from_plain, plain
from clusterlora.stores.routing_table import RoutingTable
from clusterlora.values import AdapterComposition, Attempt, Criterion
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import LOG, crown, missing_groups, plan_of, request_of, rows_of, run, run_rest, state_of, train_named
from tests.fixtures.studies import memory_stores, poisoned


@pytest.fixture
def study(seven: Study) -> Study:
    return seven


@pytest.mark.whole
def test_a_study_runs_from_data_to_a_registered_champion_and_again_without_doing_anything_twice(
    study: Study, finished_stores: Stores
) -> None:
    stores = finished_stores
    assert isinstance(stores.tracker, MemoryTracker)
    assert len(stores.tracker.models["small"]) == stores.tracker.champions["small"] == 1
    attempts_before = stores.studies.attempts(study.name)
    comparison = compare_study(study.name, stores, LOG)
    assert {result.method for result in comparison.methods} == set(study.methods)
    assert comparison.n_personas == 7
    assert comparison.beside == ("parameter_f1", "numeric_accuracy"), "a home is set to numbers"
    assert comparison.floor is not None
    assert comparison.floor_same_prompt is not None
    assert comparison.floor < comparison.floor_same_prompt < 1, "who asks for much the same is told much the same"
    folder = stores.folder(study.name)
    summary = pd.read_csv(folder / "results" / "summary.csv")
    assert {"method", "embedding_similarity", "vs_unified", "ci_low", "ci_high", "win_rate", "worst_persona"} <= set(summary.columns)
    assert (folder / "results" / "figures" / "comprehensive_comparison.png").stat().st_size > 10_000
    cluster_adapter = next(a.name for a in stores.studies.adapters(study.name) if a.name.startswith("cluster-00"))
    assert (folder / "models" / "lora_clusters" / cluster_adapter.replace("-", "_") / "adapter_model.safetensors").exists()
    assert (folder / "logs" / "cluster_0_training.log").read_text().count("finished") == 1

    trained_before = {a.key: a.seconds for a in stores.studies.adapters(study.name)}
    run(study, stores)
    assert {a.key: a.seconds for a in stores.studies.adapters(study.name)} == trained_before
    assert stores.studies.attempts(study.name) == attempts_before
    assert evaluate(EvaluationRequest(study_name=study.name), stores, LOG) == 0


def test_the_seconds_of_a_repeated_phase_are_added(study: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.studies.create_study(prepared(study, "float32"))
    ticks = iter((100.0, 160.0, 500.0, 501.25, 600.0, 700.0))
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    for _ in range(2):
        with timing.timed(stores, study.name, "evaluate test", "1/2"):
            pass
    with pytest.raises(OutOfMemory), timing.timed(stores, study.name, "evaluate test", "1/2"):
        raise OutOfMemory("full", micro_batch=1)
    stores.studies.add_seconds(study.name, "evaluate test", "2/2", 0.75)
    assert timing.seconds_by_part(stores.studies.seconds(study.name)) == {"evaluate test 1/2": 61.25, "evaluate test 2/2": 0.75}
    assert timing.seconds_by_phase(stores.studies.seconds(study.name)) == {"evaluate test": 62.0}


@pytest.mark.whole
def test_every_registered_model_answers_as_it_was_evaluated(study: Study, stores: Stores) -> None:
    """More than 64 tokens, the default, and a prompt of its own that shows who asks."""
    study = replace(
        study,
        methods=("unified", "cluster", "cluster_hybrid", "unified_described"),
        data=replace(study.data, synthetic=replace(study.data.synthetic, cluster_sizes=(2, 2))),
        clustering=ClusteringSettings(k=2, sizes=(2, 2)),
        gate=replace(study.gate, ladder=()),
        model=replace(study.model, system_prompt="Du bist ein Haus.", persona_in_prompt=True),
        evaluation=replace(study.evaluation, max_new_tokens=70),
    )
    run(study, stores)
    compare_study(study.name, stores, LOG)
    crown(study.name, stores)
    register_models(study.name, stores, LOG)

    rows = [row for row in rows_of(study, stores) if row.seed == 0]
    outcome = stores.studies.metadata(study.name, ComparisonSummary)
    assert outcome is not None
    evaluated = {
        "small": [row for row in rows if row.method == outcome.champion],
        "small-unified": [row for row in rows if row.method == "unified"],
        **{f"small-cluster-0{k}": [row for row in rows if row.method == "cluster" and row.cluster == k] for k in (0, 1)},
    }
    assert isinstance(stores.tracker, MemoryTracker)
    assert stores.tracker.models.keys() == evaluated.keys()
    people = stores.studies.dataset(study.name).by_id()
    for name, (version,) in stores.tracker.models.items():
        router = Router(from_plain(RoutingTable, plain(version.content)), version.adapters)
        answers = router.answer([request_of(people[row.persona_id], row.item_id) for row in evaluated[name]])
        assert [answer["text"] for answer in answers] == [row.text for row in evaluated[name]], name

    stores.studies.forget_adapter(next(a.key for a in stores.studies.adapters(study.name) if a.name == "cluster-00"))
    with pytest.raises(BadData, match="has lost cluster-00; train again"):
        routing_table(state_of(study, stores), plan_of(study, stores), "cluster", stores)


@pytest.mark.whole
def test_any_cluster_can_be_judged_and_only_cluster_0_decides(study: Study, finished_stores: Stores) -> None:
    stores = finished_stores
    before = stores.studies.verdicts(study.name)
    rung = decided_rung(state_of(study, stores)).name
    evaluate(EvaluationRequest(study_name=study.name, part="gate", rung=rung, cluster=1), stores, LOG)
    verdict = verdict_on(state_of(study, stores), rung, 1, stores)
    clustering = stores.studies.clustering(study.name)
    assert clustering is not None
    assert verdict.adapter.startswith("cluster-01")
    assert verdict.n_personas == len(clustering.members[1])
    assert stores.studies.verdicts(study.name) == before
    with pytest.raises(UnknownName, match="no cluster 7"):
        verdict_on(state_of(study, stores), rung, 7, stores)


@pytest.mark.whole
def test_the_baseline_may_answer_first_what_test_would_ask_of_it_and_nothing_changes(study: Study, finished_stores: Stores) -> None:
    stores, usual, study = finished_stores, study, replace(study, name="ahead")
    dataset = prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    n_ahead = evaluate(EvaluationRequest(study_name=study.name, part="baseline"), stores, LOG)
    bare = plan_of(study, stores).composition_key(AdapterComposition())
    ahead = set(stores.studies.answers(study.name, [bare]))
    model = stores.studies.study(study.name).model
    # Their val items too: selective routing may choose the bare base model.
    assert n_ahead == len(ahead) == sum(len(items(model, p, split)) for p in dataset.personas for split in ("val", "test"))
    run(study, stores)
    assert set(stores.studies.answers(study.name, [bare])) == ahead
    assert stores.studies.routes(study.name) == stores.studies.routes(usual.name)
    actual, expected = (
        rows_of(study, stores),
        rows_of(usual, stores),
    )
    assert [replace(row, scores={}) for row in actual] == [replace(row, scores={}) for row in expected]
    # What is read beside what, and with it the order in which floating-point numbers are added, is another; a cosine may be near zero.
    assert [dict(row.scores) for row in actual] == [pytest.approx(dict(row.scores), rel=1e-5, abs=1e-5) for row in expected]


@pytest.mark.whole
def test_the_base_model_is_not_evaluated_unless_a_method_needs_it(study: Study, stores: Stores) -> None:
    without = replace(study, methods=("unified", "cluster"))
    prepare_study(without, stores, LOG)
    cluster_study(without.name, stores, LOG)
    assert evaluate(EvaluationRequest(study_name=without.name, part="baseline"), stores, LOG) == 0


@pytest.mark.whole
def test_adapters_are_merged_once_and_compared_like_any_other(study: Study, finished_stores: Stores) -> None:
    stores, study = finished_stores, replace(study, name="merging", methods=("unified", "merge"), merging=MergeSettings(kind="ties"))
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    run_rest(study, stores)
    plan = plan_of(study, stores)
    adapters = {adapter.name: adapter for adapter in stores.studies.adapters(study.name)}
    assert {"merged-00", "merged-01"} <= adapters.keys()
    assert isnan(adapters["merged-00"].last_loss)
    assert adapters["merged-00"].steps == 0
    folder = stores.folder(study.name) / "models" / "merged_clusters" / "merged_00"
    for layer, (a, b) in read_adapter(folder).items():
        assert a.shape[0] == b.shape[1] == study.recipe.rank, layer
    assert "% of its energy" in (stores.folder(study.name) / "logs" / "merge_training.log").read_text()
    assert {result.method for result in compare_study(study.name, stores, LOG).methods} == {"unified", "merge"}
    assert remaining_groups(state_of(study, stores)) == ()
    other_kind = plan_of(replace(study, merging=MergeSettings(kind="dare")), stores)
    assert other_kind.keys["merged-00"] != plan.keys["merged-00"]
    assert other_kind.keys["persona-0000"] == plan.keys["persona-0000"]


def gate_waves(study: Study, stores: Stores, rung: Rung) -> list[list[str]]:
    waves = gate_groups(state_of(study, stores), plan_of(study, stores, rung))
    return [[group.name for group in groups] for groups in waves]


def test_rows_name_all_adapters_that_a_method_could_choose_for_a_person(study: Study, finished_stores: Stores) -> None:
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in rows_of(study, finished_stores):
        found.setdefault(row.method, {})[row.persona_id] = row.adapters
    assert set(found["baseline"].values()) == {()}
    assert set(found["unified"].values()) == {("unified",)}
    assert len(set(found["cluster"].values())) == 2
    assert len(set(found["per_persona"].values())) == 7
    for persona_id, adapters in found["selective_routing"].items():
        assert set(adapters) == {"unified", *found["cluster"][persona_id], *found["per_persona"][persona_id]}


@pytest.mark.whole
def test_a_cluster_of_one_person_is_trained_in_a_run_of_its_own(study: Study, stores: Stores) -> None:
    study = replace(study, clustering=ClusteringSettings(k=2, sizes=(1, 6)))
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    assert gate_waves(study, stores, OWN) == [["unified", "cluster-00"]], "the longest first"


@pytest.mark.whole
def test_a_cluster_of_one_person_is_registered_like_any_other(study: Study, finished_stores: Stores) -> None:
    stores, methods = finished_stores, ("unified", "per_persona", "cluster")
    clusters, gate = ClusteringSettings(k=2, sizes=(1, 6)), replace(study.gate, ladder=())
    study = replace(study, name="lonely", methods=methods, clustering=clusters, gate=gate)
    run(study, stores)
    compare_study(study.name, stores, LOG)
    register_models(study.name, stores, LOG)
    assert isinstance(stores.tracker, MemoryTracker)
    models = {"lonely-unified", "lonely-cluster-00", "lonely-cluster-01", "lonely-per-persona"}
    assert {name for name in stores.tracker.models if name.startswith("lonely")} == models


def records(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.whole
def test_the_summary_can_be_recomputed_from_the_raw_rows_for_every_metric(study: Study, finished_stores: Stores) -> None:
    metrics = tuple(name for name, metric in METRICS.items() if not (metric.tasks or metric.pairwise))  # those have tests of their own
    stores, study = finished_stores, replace(study, name="measured", evaluation=replace(study.evaluation, metrics=metrics))
    run(study, stores)
    compare_study(study.name, stores, LOG)
    results = stores.folder(study.name) / "results"
    for metric in metrics:
        scores: dict[str, dict[str, list[float]]] = {}
        for row in records(results / "rows.csv"):
            scores.setdefault(row["method"], {}).setdefault(row["persona_id"], []).append(float(row[metric]))
        summary = records(results / "summary.csv")
        assert {record["method"] for record in summary} == scores.keys()
        for record in summary:
            means = [fmean(items) for items in scores[record["method"]].values()]
            assert float(record[metric]) == pytest.approx(fmean(means), rel=1e-6, abs=1e-12), metric


def numbers_of(criterion: Criterion) -> tuple[float | None, ...]:
    return criterion.value, criterion.threshold, criterion.ci_low, criterion.ci_high


@pytest.mark.whole
def test_nothing_but_the_final_scores_sees_test_answers(
    study: Study, finished_stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, other = finished_stores, memory_stores(tmp_path / "other")
    clean = stores.studies.dataset(study.name)
    monkeypatch.setattr("clusterlora.stages.base_checks.load", lambda _settings, _fit, _left: poisoned(clean))
    run(study, other)
    assert other.studies.routes(study.name) == stores.studies.routes(study.name)
    for theirs, ours in zip(other.studies.verdicts(study.name), stores.studies.verdicts(study.name), strict=True):
        assert replace(theirs, criteria=()) == replace(ours, criteria=())
        # What else was embedded in the batch of an answer moves a last digit.
        for one, before in zip(theirs.criteria, ours.criteria, strict=True):
            assert numbers_of(one) == pytest.approx(numbers_of(before), abs=1e-6)
            assert (one.name, one.passed, one.explanation) == (before.name, before.passed, before.explanation)
    assert other.studies.clustering(study.name) == stores.studies.clustering(study.name)
    keys = {a.name: a.key for a in stores.studies.adapters(study.name)}
    assert {a.name: a.key for a in other.studies.adapters(study.name)} == keys
    scores = [{row.item_id: dict(row.scores) for row in rows_of(study, s)} for s in (stores, other)]
    assert scores[0] != scores[1], "the poison did not reach the final scores, so this test would prove nothing"


@pytest.mark.whole
def test_a_refused_gate_stops_training_and_compares_the_trained_adapters(study: Study, finished_stores: Stores) -> None:
    stores, everything = finished_stores, (*study.methods, "hybrid")
    # Three people cannot meet the sign test of a further rung; without it, luck may do.
    gate = replace(study.gate, mean_similarity=1.0, on_failure="stop", later_rungs_luck=None)
    strict = replace(study, name="strict", methods=everything, seeds=2, gate=gate)
    run(strict, stores)
    assert refused(state_of(strict, stores))
    assert {v.rung for v in stores.studies.verdicts(strict.name)} == {"own", "warm-start"}
    assert {a.name for a in stores.studies.adapters(strict.name)} == {"unified", "cluster-00", "cluster-00+warm-start"}
    comparison = compare_study(strict.name, stores, LOG)
    assert {result.method for result in comparison.methods} == {"baseline", "unified", "selective_routing"}
    assert comparison.n_personas == 7, "three would be too few for a verdict, so everybody is compared by the methods that answer everybody"
    # Nothing was trained with the second seed: routing may not stand in for it with the bare base model.
    assert {row.seed for row in rows_of(strict, stores)} == {0}
    register_models(strict.name, stores, LOG)


@pytest.mark.whole
def test_a_warm_started_rung_trains_unified_first_and_has_a_name_of_its_own(study: Study, stores: Stores) -> None:
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    warm = rungs(state_of(study, stores))[1]
    assert gate_waves(study, stores, warm) == [["unified"], ["cluster-00+warm-start"]], "a warm start waits for what it starts from"
    train_named(study, stores, ["unified"])
    assert gate_waves(study, stores, warm) == [["cluster-00+warm-start"]]
    own, other = plan_of(study, stores, OWN), plan_of(study, stores, warm)
    assert own.keys["cluster-00"] != other.keys["cluster-00+warm-start"]
    assert decided_rung(state_of(study, stores)) == OWN


@pytest.mark.whole
def test_a_cache_key_covers_what_decides_the_weights_and_nothing_else(study: Study, stores: Stores) -> None:
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    keys = plan_of(study, stores).keys

    def with_recipe(**changes: Any) -> dict[str, str]:
        return plan_of(replace(study, recipe=replace(study.recipe, **changes)), stores).keys

    assert with_recipe(learning_rate=1e-3)["unified"] != keys["unified"]
    assert with_recipe(seed=1)["persona-0003"] != keys["persona-0003"]
    assert plan_of(replace(study, runtime=RuntimeSettings(micro_batch=1, shards=5)), stores).keys == keys
    assert len(set(keys.values())) == len(keys)


@pytest.mark.whole
def test_a_micro_batch_that_ran_out_of_memory_is_not_tried_by_the_next_group(
    study: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def too_much(*_given: object, micro_batch: int, **_more: object) -> Iterator[TrainingResult]:
        tried.append(micro_batch)
        raise OutOfMemory("no room", micro_batch=micro_batch)

    monkeypatch.setattr("clusterlora.engine.training.train", too_much)
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    first, second = missing_groups(study, stores, judged_adapters(plan_of(study, stores)))
    for group in (first, second):
        with pytest.raises(OutOfMemory):
            train_group(TrainRequest(study_name=study.name, group=group, micro_batch=2, attempt=1), stores, LOG)
    assert tried == [2, 1]
    assert {a.group: a.micro_batch for a in stores.studies.attempts(study.name)} == {first.name: 2, second.name: 1}


@pytest.mark.whole
@pytest.mark.parametrize(
    ("section", "other", "tried_first"),
    [
        ("runtime", {"shards": 3}, 1),
        ("runtime", {"micro_batch": 2}, 2),
        ("runtime", {"gradient_checkpointing": True}, 2),
        ("model", {"dtype": "bfloat16"}, 2),
    ],
)
def test_what_ran_out_of_memory_is_tried_again_where_it_is_set_or_other_settings_may_fit(
    study: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch, section: str, other: dict[str, Any], tried_first: int
) -> None:
    tried: list[int] = []

    def too_much(*_given: object, micro_batch: int, **_more: object) -> Iterator[TrainingResult]:
        tried.append(micro_batch)
        raise OutOfMemory("no room", micro_batch=micro_batch)

    monkeypatch.setattr("clusterlora.engine.training.train", too_much)
    later = replace(study, name="later", **{section: replace(getattr(study, section), **other)})
    for one in (replace(study, model=replace(study.model, dtype="float32")), later):
        prepare_study(one, stores, LOG)
        cluster_study(one.name, stores, LOG)
        group = missing_groups(one, stores, judged_adapters(plan_of(one, stores)))[0]
        with pytest.raises(OutOfMemory):
            train_group(TrainRequest(study_name=one.name, group=group, micro_batch=2, attempt=1), stores, LOG)
    assert tried == [2, tried_first]


def next_try(study: Study, stores: Stores) -> tuple[int, int]:
    request = next_request(study, TrainingGroup("unified", "unified", ("unified",)), stores)
    return request.attempt, request.micro_batch


def test_after_running_out_of_memory_the_next_attempt_has_half_the_micro_batch(study: Study, stores: Stores) -> None:
    prepare_study(study, stores, LOG)
    assert next_try(study, stores) == (1, 2)
    stores.studies.open_attempt(study.name, Attempt("unified", 1, 2, "running"))
    assert next_try(study, stores) == (1, 2), "an attempt under way is joined, not doubled"
    stores.studies.close_attempt(study.name, "unified", 1, state="out_of_memory")
    assert next_try(study, stores) == (2, 1)
    stores.studies.open_attempt(study.name, Attempt("unified", 2, 1, "running"))
    stores.studies.close_attempt(study.name, "unified", 2, state="crashed")
    assert next_try(study, stores) == (3, 1)


def test_training_groups_name_their_log_files_as_people_expect() -> None:
    assert log_name("cluster-00") == "cluster_0_training.log"
    assert log_name("unified") == "unified_training.log"
    assert log_name("fan-out-1-of-2") == "fan_out_1_of_2_training.log"
