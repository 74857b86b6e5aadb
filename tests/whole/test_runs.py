"""A whole study on real workers, Prefect and MLflow: real out-of-memory errors, a killed child run, a relaunch that trains nothing."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_runs import resume_flow_run
from prefect.states import Cancelled, Cancelling, Scheduled

from clusterlora.config import as_mapping
from clusterlora.metadata import ComparisonSummary
from clusterlora.planning.attempts import next_request
from clusterlora.planning.gate_step import next_gate_step
from clusterlora.planning.study_state import read_state
from clusterlora.recipe import Recipe
from clusterlora.requests import TrainingGroup
from clusterlora.settings import GateSettings, RuntimeSettings, Study
from clusterlora.values import Attempt
from clusterlora.wiring import from_environment
from tasks import child_runs
from tests.fixtures.prefect import own_worker
from tests.fixtures.runs import (
    attempts,
    launch,
    prepare_here,
    process_of,
    runs_of,
    small_study,
    state_of,
    stores_here,
    train_here,
    wait_for,
)

# MLflow warns of its own type hints when its model flavours are imported.
pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore:.*AnyType:UserWarning")]

CRAMPED = "tests.whole.cramped"
BATCH = 16
MEGABYTES = 1000
"""Too little for what a step on BATCH dialogues at once keeps for the backward pass (1.1 GB), enough for half of it."""


def group(study: Study, name: str, site: dict[str, str]) -> TrainingGroup:
    step = next_gate_step(read_state(study.name, stores_here(site)))
    assert step is not None
    return next(group for wave in step.waves for group in wave if group.name == name)


def test_out_of_memory_is_retried_in_the_ui_with_half_the_micro_batch(site: dict[str, str], people: Path, deep_base: Path):
    from tasks.fan_out import train_all

    recipe = Recipe(rank=2, epochs=1, batch_size=BATCH, target_modules=("q_proj", "v_proj"))
    study = small_study("memory", people, deep_base, recipe=recipe, runtime=RuntimeSettings(shards=1, gpu_pool="gpu-cramped"))
    prepare_here(study, from_environment(site))

    @flow
    def parent() -> None:
        for name in ("unified", "cluster-00"):
            train_all(study.name, [group(study, name, site)])

    command = f"{sys.executable} -m deployments.fork_server {CRAMPED} flows.train.train {MEGABYTES}"
    with own_worker("gpu-cramped", site, flows=("train",), command=command):
        parent()

    tried = attempts(study, "unified")
    assert tried[0] == (1, BATCH, "out_of_memory")
    assert [micro_batch for _, micro_batch, _ in tried] == [BATCH >> n for n in range(len(tried))]
    assert tried[-1][2] == "done"
    runs = runs_of(study, name="train · unified")
    assert [run.name for run in runs] == [
        f"train · unified · {study.name} · micro-batch {BATCH >> n} · attempt {n + 1}" for n in range(len(tried))
    ]
    assert [run.state_name for run in runs] == ["OutOfMemory"] * (len(tried) - 1) + ["Completed"]
    assert f"ran out of memory at micro-batch {BATCH}" in str(state_of(runs[0]).message)
    assert "can't allocate memory" in str(state_of(runs[0]).message)
    # What fits here is known from then on.
    assert attempts(study, "cluster-00") == [(1, tried[-1][1], "done")]


def test_a_killed_child_run_crashes_and_is_retried(site: dict[str, str], people: Path, tiny_base_folder: Path):
    from tasks.fan_out import train_all

    # So many epochs that it is still training when it is struck.
    study = small_study("killed", people, tiny_base_folder, recipe=Recipe(rank=2, epochs=200, target_modules=("q_proj", "v_proj")))
    prepare_here(study, from_environment(site))

    @flow
    def parent() -> None:
        train_all(study.name, [group(study, "cluster-00", site)])

    def running() -> UUID | None:
        return next((run.id for run in runs_of(study, name="train · cluster 00") if run.state_name in ("Pending", "Running")), None)

    with ThreadPoolExecutor(1) as background:
        finished = background.submit(copy_context().run, parent)
        child = wait_for(running)
        os.kill(wait_for(lambda: process_of(child)), signal.SIGKILL)
        finished.result()

    assert [(number, state) for number, _, state in attempts(study, "cluster-00")] == [(1, "crashed"), (2, "done")]
    assert [run.state_name for run in runs_of(study, name="train · cluster 00")] == ["Crashed", "Completed"]


def test_a_study_that_was_cancelled_and_is_taken_up_again_makes_another_attempt(
    site: dict[str, str], people: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    from tasks.fan_out import train_all

    study = small_study("again", people, tiny_base_folder)
    stores = from_environment(site)
    prepare_here(study, stores)
    open_attempt = Attempt("cluster-00", 1, 2, "running")
    stores.studies.open_attempt(study.name, open_attempt)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("train/train")
        key = child_runs._key(study.name, open_attempt, stores)
        in_an_hour = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=1))
        request = {"request": asdict(next_request(study, group(study, "cluster-00", site), stores))}
        run = client.create_flow_run_from_deployment(deployment.id, parameters=request, idempotency_key=key, state=in_an_hour)
        client.set_flow_run_state(run.id, Cancelling(), force=True)

        def end_it(_seconds: float) -> None:
            client.set_flow_run_state(run.id, Cancelled(message="by ann"), force=True)

        monkeypatch.setattr(child_runs, "time", SimpleNamespace(sleep=end_it))

        @flow
        def parent() -> None:
            train_all(study.name, [group(study, "cluster-00", site)])

        parent()
    assert [(number, state) for number, _, state in attempts(study, "cluster-00")] == [(1, "cancelled"), (2, "done")]


def test_a_study_trains_only_what_is_missing_and_ends_with_a_comparison(finished: Study, site: dict[str, str]):
    run = runs_of(finished, name="study · ")[0]
    assert state_of(run).is_completed(), state_of(run).message
    assert run.name == f"study · {finished.name}"

    trained = runs_of(finished, name="train ·")
    assert [r.name.split(" · ")[1] for r in trained] == ["cluster 00", "fan-out 1/1"]
    assert {f"study:{finished.name}", "method:cluster", "method:per_persona"} <= {*trained[1].tags}
    assert not any("method:unified" in r.tags for r in trained)
    tested = runs_of(finished, name="evaluate · test")[0]
    assert {f"method:{method}" for method in finished.methods} <= {*tested.tags}
    stores = stores_here(site)
    assert len(stores.studies.adapters(finished.name)) == 1 + 2 + 8
    assert (stores.folder(finished.name) / "results" / "summary.csv").exists()
    names = {r.name for r in runs_of(finished)}
    gate, judged = f"gate · {finished.name}", f"gate · cluster 00 · {finished.name} · own"
    assert {gate, judged, f"evaluate · test 1/1 · {finished.name}", f"compare · {finished.name}"} <= names
    name = finished.name
    keys = [f"clusters-{name}", f"signal-{name}", f"gate-{name}-power", f"gate-{name}-own", f"gate-table-{name}-own"]
    assert state_of(runs_of(finished, name="evaluate · probe")[0]).is_completed()
    keys += [f"expected-{name}", f"comparison-{name}", f"status-{name}", f"progress-{name}-train-fan-out-1-1"]
    with get_client(sync_client=True) as client:
        for key in keys:
            assert client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key]))), key


def test_its_models_and_every_adapter_are_in_mlflow(finished: Study, site: dict[str, str]):
    """Also the one that was trained where nobody knew an MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(site["MLFLOW_TRACKING_URI"])
    versions = client.search_model_versions(f"tags.study = '{finished.name}'")
    # Eight items show nothing: no router is champion, and no version may become one.
    assert {version.tags["comparison"] for version in versions} == {"failed"}
    assert not any(client.get_registered_model(version.name).aliases for version in versions)
    kinds = ("-unified", "-cluster-00", "-cluster-01", "-per-persona")
    assert {version.name for version in versions} == {f"{finished.name}{kind}" for kind in kinds}
    experiment = client.get_experiment_by_name(finished.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert stores_here(site).studies.status(finished.name) == "finished"


def test_a_relaunched_study_retrains_nothing(finished: Study):
    before = runs_of(finished, name="train ·")
    run = launch("study/study", config=as_mapping(finished))
    assert state_of(run).is_completed(), state_of(run).message
    assert [r.id for r in runs_of(finished, name="train ·")] == [r.id for r in before]


def test_a_worker_merges_the_clusters_in_another_way(site: dict[str, str], people: Path, tiny_base_folder: Path):
    study = small_study("merged", people, tiny_base_folder)
    stores = prepare_here(study, from_environment(site))
    train_here(study, stores, *(f"persona-{number:04d}" for number in range(8)))
    run = launch("merge/merge", request={"study_name": study.name, "merging": {"kind": "ties", "density": 0.5}})
    assert state_of(run).is_completed(), state_of(run).message
    merged = {a.name: a for a in stores.studies.adapters(f"{study.name}-ties-0.5") if a.spec.merge_of}
    assert set(merged) == {"merged-00", "merged-01"}
    assert sorted(len(a.spec.merge_of) for a in merged.values()) == [3, 5]
    outcome = stores.studies.metadata(f"{study.name}-ties-0.5", ComparisonSummary)
    assert outcome is not None
    assert {"per_persona", "merge"} <= {score.method for score in outcome.scores}


def test_a_study_with_impossible_settings_is_refused_before_anything_runs(site: dict[str, str]):
    with pytest.raises(PrefectHTTPStatusError, match="'unyfied' is not one of "):
        launch("study/study", config={"name": "wrong", "methods": ["unyfied"]})
    run = launch(
        "study/study", config={"name": "wrong", "data": {"source": "table", "path": "/nowhere.jsonl"}, "model": {"base": "homelm"}}
    )
    assert state_of(run).is_failed()
    assert "/nowhere.jsonl" in str(state_of(run).message)
    assert "wrong" not in {name for name, _, _ in stores_here(site).studies.studies()}


def test_a_refused_gate_waits_for_a_decision_and_stop_ends_the_study(site: dict[str, str], people: Path, tiny_base_folder: Path):
    # Nobody passes a mean similarity of 1. With two shards a worker has time while the gate's adapters are trained.
    strict = GateSettings(ladder=(), worst_persona=None, mean_similarity=1.0, on_failure="ask")
    study = small_study("asked", people, tiny_base_folder, gate=strict, runtime=RuntimeSettings(shards=2))
    stores = prepare_here(study, from_environment(site))
    run_id = cast("FlowRun", run_deployment("study/study", parameters={"config": as_mapping(study)}, timeout=0)).id
    with get_client(sync_client=True) as client:

        def state() -> Any:
            return state_of(client.read_flow_run(run_id))

        wait_for(lambda: True if state().is_paused() or state().is_final() else None)
        assert state().is_paused(), state().message
        assert len(stores.studies.verdicts(study.name)) == 1
        assert not [a for a in stores.studies.adapters(study.name) if a.name.startswith(("cluster-01", "persona"))]
        resume_flow_run(run_id, run_input={"choice": "stop", "decided_by": "bob"})
        wait_for(lambda: True if state().is_final() else None)
        assert state().is_completed(), state().message
        assert state().name == "GateRefused"
    assert [run.state_name for run in runs_of(study, name="evaluate · baseline")] == ["Completed"]
    assert stores.studies.status(study.name) == "finished"
    assert [(one.choice, one.by) for one in read_state(study.name, stores).decisions] == [("stop", "bob")]
    assert [verdict.rung for verdict in stores.studies.verdicts(study.name)] == ["own"]
