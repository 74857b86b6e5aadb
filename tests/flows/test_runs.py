"""A whole study on real workers: memory that really runs out, a child really killed, and a relaunch that trains nothing.

The tests tell one story in order and share one study, because starting runs is what costs time here.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterName, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment

from clusterlora.settings import (
    ClusteringSettings,
    DataSettings,
    EvaluationSettings,
    GateSettings,
    ModelSettings,
    Recipe,
    RuntimeSettings,
    Study,
)
from clusterlora.stages.plan import OWN, Pack
from clusterlora.wiring import from_environment

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]

CRAMPED = Path(__file__).with_name("cramped.py")
BATCH = 16
MEGABYTES = 1750
"""Too little for a step on BATCH dialogues at once (2.1 GB), enough for half of them (1.5 GB)."""

T = TypeVar("T")


@pytest.fixture(scope="module")
def study(site: dict[str, str], people: Path, wide_base: Path) -> Study:
    """Return a study of eight people that is prepared and clustered, and of which nothing is trained."""
    from clusterlora.stages.cluster import cluster
    from clusterlora.stages.prepare import prepare
    from clusterlora.stores.memory import SilentLog

    study = Study(
        name="small",
        methods=("baseline", "unified", "per_persona", "cluster"),
        data=DataSettings(source="table", path=str(people), train=2, val=1, test=1),
        model=ModelSettings(base=str(wide_base)),
        recipe=Recipe(rank=2, epochs=1, batch_size=BATCH, target_modules=("q_proj", "v_proj")),
        clustering=ClusteringSettings(k=2, sizes=(3, 5)),
        gate=GateSettings(ladder=(), worst_persona=None, on_failure="continue"),
        evaluation=EvaluationSettings(max_new_tokens=4, batch_size=4, bootstrap_draws=100),
        runtime=RuntimeSettings(shards=1),
    )
    stores = from_environment()
    prepare(study, stores, SilentLog())
    cluster(study, stores, SilentLog())
    return study


def pack(study: Study, name: str) -> Pack:
    from clusterlora.stages.plan import gate_packs

    return next(p for p in gate_packs(study, from_environment(), OWN) if p.name == name)


def attempts(study: Study, pack_name: str) -> list[tuple[int, int, str]]:
    return [(a.number, a.micro_batch, a.state) for a in from_environment().studies.attempts(study.name, pack_name)]


def runs_of(study: Study, *, name: str = "") -> list[FlowRun]:
    """Return the study's runs whose name contains this, oldest first."""
    wanted = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"study:{study.name}"]), name=FlowRunFilterName(like_=name))
    with get_client(sync_client=True) as client:
        return sorted(client.read_flow_runs(flow_run_filter=wanted), key=lambda run: str(run.created))


def launch(config: dict[str, Any]) -> FlowRun:
    return cast("FlowRun", run_deployment("study/study", parameters={"config": config}, poll_interval=1))


def state_of(run: FlowRun) -> State[Any]:
    assert run.state is not None
    return run.state


@contextmanager
def command_of_training(client: SyncPrefectClient, command: str) -> Iterator[None]:
    """Run the train deployment by another command inside the block."""
    from prefect.client.schemas.actions import DeploymentUpdate

    deployment = client.read_deployment_by_name("train/train")
    client.update_deployment(deployment.id, DeploymentUpdate(job_variables={"command": command}))
    try:
        yield
    finally:
        client.update_deployment(deployment.id, DeploymentUpdate(job_variables=deployment.job_variables))


def wait_for(what: Callable[[], T | None], *, seconds: float = 240) -> T:
    deadline = time.monotonic() + seconds
    while (found := what()) is None:
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.2)
    return found


def process_of(flow_run_id: UUID) -> int | None:
    """Return the process that executes a run."""
    mark = f"PREFECT__FLOW_RUN_ID={flow_run_id}".encode()
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark in (folder / "environ").read_bytes():
                return int(folder.name)
        except OSError:
            continue  # somebody else's process, or one that has just ended
    return None


def test_out_of_memory_is_retried_in_the_ui_with_half_the_micro_batch(study: Study):
    from tasks.fan_out import train_all

    @flow
    def parent() -> None:
        train_all(study.name, [pack(study, "unified")])

    with get_client(sync_client=True) as client, command_of_training(client, f"{sys.executable} {CRAMPED} flows.train.train {MEGABYTES}"):
        parent()

    tried = attempts(study, "unified")
    assert tried[0] == (1, BATCH, "out_of_memory")
    assert [micro_batch for _, micro_batch, _ in tried] == [BATCH >> n for n in range(len(tried))]
    assert tried[-1][2] == "done"
    runs = runs_of(study, name="train · unified")
    assert [run.name for run in runs] == [
        f"train · unified · small · micro-batch {BATCH >> n} · attempt {n + 1}" for n in range(len(tried))
    ]
    assert [run.state_name for run in runs] == ["OutOfMemory"] * (len(tried) - 1) + ["Completed"]
    assert f"ran out of memory at micro-batch {BATCH}" in str(state_of(runs[0]).message)
    assert "can't allocate memory" in str(state_of(runs[0]).message)


def test_a_killed_child_is_crashed_and_tried_again(study: Study):
    from concurrent.futures import ThreadPoolExecutor

    from tasks.fan_out import train_all

    @flow
    def parent() -> None:
        train_all(study.name, [pack(study, "cluster-00")])

    def running() -> UUID | None:
        return next((run.id for run in runs_of(study, name="train · cluster 00") if run.state_name in ("Pending", "Running")), None)

    with ThreadPoolExecutor(1) as background:
        finished = background.submit(parent)
        child = wait_for(running)
        os.kill(wait_for(lambda: process_of(child)), signal.SIGKILL)
        finished.result()

    assert attempts(study, "cluster-00") == [(1, BATCH, "crashed"), (2, BATCH, "done")]
    assert [run.state_name for run in runs_of(study, name="train · cluster 00")] == ["Crashed", "Completed"]


def test_the_study_trains_only_what_is_missing_and_ends_with_a_comparison(study: Study):
    from clusterlora.config import as_mapping

    before = {run.id for run in runs_of(study, name="train ·")}
    run = launch(as_mapping(study))
    assert state_of(run).is_completed(), state_of(run).message
    assert run.name == "study · small"

    trained = [r.name.split(" · ")[1] for r in runs_of(study, name="train ·") if r.id not in before]
    assert sorted(trained) == ["cluster 01", "per persona 1/1"]
    stores = from_environment()
    assert len(stores.studies.adapters("small")) == 1 + 2 + 8
    assert (stores.folder("small") / "results" / "summary.csv").exists()
    assert stores.studies.status("small") == "finished"
    names = {r.name for r in runs_of(study)}
    assert {"gate · cluster 00 · small", "gate · cluster 00 · small · own", "evaluate · test 1/1 · small", "compare · small"} <= names
    with get_client(sync_client=True) as client:
        keys = ("clusters-small", "signal-small", "gate-small-power", "gate-small-own", "comparison-small", "status-small")
        for key in (*keys, "progress-small-train-cluster-01"):
            assert client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key]))), key


def test_launched_again_it_retrains_nothing(study: Study):
    from clusterlora.config import as_mapping

    before = runs_of(study, name="train ·")
    run = launch(as_mapping(study))
    assert state_of(run).is_completed(), state_of(run).message
    assert [r.id for r in runs_of(study, name="train ·")] == [r.id for r in before]


def test_a_study_with_impossible_settings_is_refused_before_anything_runs(site: dict[str, str]):
    run = launch({"name": "wrong", "methods": ["unyfied"]})
    assert state_of(run).is_failed()
    assert "unyfied" in str(state_of(run).message)
    assert "wrong" not in {name for name, _, _ in from_environment().studies.studies()}


@pytest.mark.parametrize("go_on", [False, True])
def test_a_refused_gate_waits_for_a_persons_word_and_acts_on_it(study: Study, go_on: bool):
    from clusterlora.config import as_mapping

    # Nobody passes a mean similarity of 1; what the first study trained is trained here, too.
    strict = replace(study.gate, mean_similarity=1.0, on_failure="ask")
    asked = replace(study, name=f"asked-{'yes' if go_on else 'no'}", methods=(*study.methods, "merge"), gate=strict)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("study/study")
        run = client.create_flow_run_from_deployment(deployment.id, parameters={"config": as_mapping(asked)})

        def state() -> State[Any]:
            return state_of(client.read_flow_run(run.id))

        wait_for(lambda: True if state().is_paused() or state().is_final() else None)
        assert state().is_paused(), state().message
        stores = from_environment()
        assert not [a for a in stores.studies.adapters(asked.name) if a.name.startswith(("cluster-01", "persona", "merged"))]

        # A worker that is handed a run whose process it has not yet seen end falls over (Prefect 3); a person is never that fast.
        wait_for(lambda: True if process_of(run.id) is None else None)
        time.sleep(5)
        client.resume_flow_run(run.id, run_input={"go_on": go_on})
        wait_for(lambda: True if state().is_final() else None)
        assert state().is_completed(), state().message
        assert state().name == ("Completed" if go_on else "GateRefused")
    merged = [a.name for a in stores.studies.adapters(asked.name) if a.name.startswith("merged")]
    assert merged == (["merged-00", "merged-01"] if go_on else [])
    assert stores.studies.status(asked.name) == "finished"
