"""A whole study on real workers: memory that really runs out, a child really killed, a relaunch that trains nothing, people at pages.

The tests tell one story in order and share one study, because starting runs is what costs time here.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
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

from browser.chromium import Tab
from browser.prefect_pages import PrefectPages
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
from clusterlora.stages.decision import decisions
from clusterlora.stages.plan import OWN, Pack
from clusterlora.wiring import from_environment

pytestmark = [pytest.mark.timeout(1500)]

CRAMPED = Path(__file__).with_name("cramped.py")
BATCH = 16
MEGABYTES = 1000
"""Too little for what a step on BATCH dialogues at once keeps for the way back (1.1 GB), enough for half of it."""

T = TypeVar("T")


@pytest.fixture(scope="module")
def study(site: dict[str, str], people: Path, deep_base: Path) -> Study:
    """Return a study of eight people that is prepared and clustered, and of which nothing is trained."""
    from clusterlora.stages.cluster import cluster
    from clusterlora.stages.prepare import prepare
    from clusterlora.stores.memory import SilentLog

    study = Study(
        name="small",
        methods=("baseline", "unified", "per_persona", "cluster"),
        data=DataSettings(source="table", path=str(people), train=2, val=1, test=1),
        model=ModelSettings(base=str(deep_base)),
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


def launch(config: dict[str, Any], **environment: str) -> FlowRun:
    variables = {"env": environment} if environment else None
    return cast("FlowRun", run_deployment("study/study", parameters={"config": config}, job_variables=variables, poll_interval=1))


def launched_by_a_program(study: Study) -> UUID:
    """Return the run of a study that nobody waits for."""
    from clusterlora.config import as_mapping

    run = run_deployment("study/study", parameters={"config": as_mapping(study)}, timeout=0)
    return cast("FlowRun", run).id


def launched_by_hand(pages: PrefectPages, study: Study, asked: Study) -> UUID:
    """Return the run that starts when the form of an earlier study's run is changed to these settings."""

    def submitted() -> bool | None:
        pages.copy_to_new_run(runs_of(study, name="study · ")[-1].id)
        pages.fill(["config", "Name"], asked.name)
        pages.add(["config", "Methods"], "merge")
        pages.fill(["config", "Gate", "Mean Similarity"], "1")
        pages.choose(["config", "Gate", "On Failure"], "ask")
        return pages.submit(says="scheduled") or None

    wait_for(submitted)

    def started() -> UUID | None:
        return next((run.id for run in runs_of(asked, name="study · ")), None)

    return wait_for(started)


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


def wait_for(what: Callable[[], T | None], *, seconds: float = 400) -> T:
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
        finished = background.submit(copy_context().run, parent)
        child = wait_for(running)
        os.kill(wait_for(lambda: process_of(child)), signal.SIGKILL)
        finished.result()

    assert [(number, state) for number, _, state in attempts(study, "cluster-00")] == [(1, "crashed"), (2, "done")]
    # Memory ran out in the test before: what fits here is known by now.
    assert attempts(study, "cluster-00")[-1][1] == attempts(study, "unified")[-1][1] < BATCH
    assert [run.state_name for run in runs_of(study, name="train · cluster 00")] == ["Crashed", "Completed"]


def test_the_study_trains_only_what_is_missing_and_ends_with_a_comparison(study: Study):
    from clusterlora.config import as_mapping

    before = {run.id for run in runs_of(study, name="train ·")}
    run = launch(as_mapping(study))
    assert state_of(run).is_completed(), state_of(run).message
    assert run.name == "study · small"

    (trained,) = [r for r in runs_of(study, name="train ·") if r.id not in before]
    assert trained.name.split(" · ")[1] == "fan-out 1/1"
    assert {"study:small", "method:cluster", "method:per_persona"} <= {*trained.tags}
    assert "method:unified" not in trained.tags
    (tested,) = runs_of(study, name="evaluate · test")
    assert {f"method:{method}" for method in study.methods} <= {*tested.tags}
    stores = from_environment()
    assert len(stores.studies.adapters("small")) == 1 + 2 + 8
    assert (stores.folder("small") / "results" / "summary.csv").exists()
    assert stores.studies.status("small") == "finished"
    names = {r.name for r in runs_of(study)}
    assert {"gate · cluster 00 · small", "gate · cluster 00 · small · own", "evaluate · test 1/1 · small", "compare · small"} <= names
    with get_client(sync_client=True) as client:
        keys = (
            "clusters-small",
            "signal-small",
            "gate-small-power",
            "gate-small-own",
            "gate-table-small-own",
            "comparison-small",
            "status-small",
        )
        for key in (*keys, "progress-small-train-fan-out-1-1"):
            assert client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key]))), key


def test_launched_again_it_retrains_nothing(study: Study, mlflow_server: str):
    """This time there is an MLflow, which nobody had when its adapters were trained."""
    from clusterlora.config import as_mapping

    before = runs_of(study, name="train ·")
    run = launch(as_mapping(study), MLFLOW_TRACKING_URI=mlflow_server)
    assert state_of(run).is_completed(), state_of(run).message
    assert [r.id for r in runs_of(study, name="train ·")] == [r.id for r in before]


def test_a_worker_merges_the_clusters_in_another_way(study: Study):
    parameters = {"study_name": study.name, "merging": {"kind": "ties", "density": 0.5}}
    run = cast("FlowRun", run_deployment("merge/merge", parameters=parameters, poll_interval=1))
    assert state_of(run).is_completed(), state_of(run).message
    merged = {a.name: a for a in from_environment().studies.adapters(study.name) if a.spec.parts}
    assert set(merged) == {"merged-00+ties-0.5", "merged-01+ties-0.5"}
    assert sorted(len(a.spec.parts) for a in merged.values()) == [3, 5]


def test_the_models_of_the_study_are_found_in_the_pages_of_mlflow(study: Study, mlflow_server: str, tab: Tab):
    tab.open(f"{mlflow_server}/#/models", until="document.querySelector('input[placeholder^=Search]')")
    # Whoever comes for the first time is told what is new.
    tab.click("document.querySelector('.du-bois-light-modal-close')")
    tab.write("document.querySelector('input[placeholder^=Search]')", study.name)
    tab.press("Enter")
    champion = f"[...document.querySelectorAll('[role=row]')].find(row => row.querySelector('a')?.innerText === '{study.name}')"
    tab.wait_until(f"/@\\s+champion/.test({champion}.innerText)")
    assert f"study: {study.name}" in tab.value(f"{champion}.innerText")
    tab.click(f"{champion}.querySelector('a[href$=\"/versions/1\"]')")
    tab.says("Aliases : @ candidate @ champion")
    tab.says(from_environment().studies.facts(study.name)["conclusion"])


def test_a_study_with_impossible_settings_is_refused_before_anything_runs(site: dict[str, str]):
    run = launch({"name": "wrong", "methods": ["unyfied"]})
    assert state_of(run).is_failed()
    assert "unyfied" in str(state_of(run).message)
    assert "wrong" not in {name for name, _, _ in from_environment().studies.studies()}


def test_the_form_offers_choices_and_refuses_what_is_out_of_range(site: dict[str, str], pages: PrefectPages):
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("study/study")
        before = client.count_flow_runs()
        pages.form(deployment.id)
        assert pages.choices(["config", "Gate", "On Failure"]) == ["stop", "ask", "continue"]
        assert pages.choices(["config", "Recipe", "Schedule"]) == ["linear", "cosine", "constant"]
        pages.fill(["config", "Recipe", "Rank"], "999")
        assert pages.submit(says="999 is greater than the maximum of 256")
        assert client.count_flow_runs() == before


@pytest.mark.parametrize("go_on", [False, True])
def test_a_refused_gate_waits_for_a_persons_word_and_acts_on_it(study: Study, pages: PrefectPages, go_on: bool):
    """The one who goes on copies the first study's run, and asks for a retry first: it fails, too, and is asked about again."""
    from clusterlora.config import as_mapping

    # Nobody passes a mean similarity of 1; what the first study trained is trained here, too.
    strict = replace(study.gate, mean_similarity=1.0, on_failure="ask")
    asked = replace(study, name=f"asked-{'yes' if go_on else 'no'}", methods=(*study.methods, "merge"), gate=strict)
    if not go_on:
        # Other adapters, and a worker that has time while the gate's are trained.
        asked = replace(asked, recipe=replace(study.recipe, seed=1), runtime=RuntimeSettings(shards=2))
    run_id = launched_by_hand(pages, study, asked) if go_on else launched_by_a_program(asked)
    with get_client(sync_client=True) as client:

        def state() -> State[Any]:
            return state_of(client.read_flow_run(run_id))

        def waits(n_verdicts: int) -> None:
            wait_for(lambda: True if len(stores.studies.verdicts(asked.name)) == n_verdicts and state().is_paused() else None)
            # A worker that is handed a run whose process it has not yet seen end falls over (Prefect 3); a person is never that fast.
            wait_for(lambda: True if process_of(run_id) is None else None)
            time.sleep(5)

        wait_for(lambda: True if state().is_paused() or state().is_final() else None)
        assert state().is_paused(), state().message
        assert client.read_flow_run(run_id).parameters == {"config": json.loads(json.dumps(as_mapping(asked)))}
        stores = from_environment()
        assert not [a for a in stores.studies.adapters(asked.name) if a.name.startswith(("cluster-01", "persona", "merged"))]
        waits(1)
        if go_on:
            pages.answer(run_id, "retry", {}, says="Validation failed")
            assert state().is_paused(), "a retry that changes nothing is not worth a run"
            pages.answer(run_id, "retry", {"Retry with this many epochs": "2", "Your name": "ann"})
            waits(2)
        pages.answer(run_id, "continue" if go_on else "stop", {"Your name": "bob"})
        wait_for(lambda: True if state().is_final() else None)
        assert state().is_completed(), state().message
        assert state().name == ("Completed" if go_on else "GateRefused")
    assert [run.state_name for run in runs_of(asked, name="evaluate · baseline")] == ([] if go_on else ["Completed"])
    merged = [a.name for a in stores.studies.adapters(asked.name) if a.name.startswith("merged")]
    assert merged == (["merged-00", "merged-01"] if go_on else [])
    assert stores.studies.status(asked.name) == "finished"
    said = [(one.choice, one.by) for one in decisions(asked.name, stores)]
    assert said == ([("retry", "ann"), ("continue", "bob")] if go_on else [("stop", "bob")])
    assert [v.rung for v in stores.studies.verdicts(asked.name)] == (["own", "asked-1"] if go_on else ["own"])
