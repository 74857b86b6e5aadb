"""How a dispatcher handles each way in which a run can end."""

import importlib
import itertools
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FunctionType
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled
from prefect.tasks import Task
from sqlalchemy.exc import DBAPIError

import tasks.child_runs as child_runs
from clusterlora.errors import BadData, ClusterLoraError, OutOfMemory, ServiceDown
from clusterlora.metadata import Provenance
from clusterlora.planning.attempts import next_request
from clusterlora.planning.study_state import read_state
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.requests import EvaluationRequest, TrainingGroup, TrainRequest
from clusterlora.settings import Study, prepared
from clusterlora.stores.files import FileAdapterStore
from clusterlora.stores.sql import SqlStudyStore
from clusterlora.values import Attempt
from tasks.child_runs import CrashedChildError, FailedChildError, deserves_another_attempt, raise_unless_completed
from tasks.dispatch import dispatch_training
from tasks.status import status_lines
from tests.fixtures.memory import MemoryStudyStore, MemoryTracker

PROVENANCE = Provenance(
    clusterlora_version="1", git_revision=None, data_digest="abc", base_revision="def", n_personas=200, n_dialogues=10_000
)


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    studies = MemoryStudyStore()
    studies.create_study(prepared(Study(name="mission"), "float32"))
    studies.save_metadata("mission", PROVENANCE)
    return Stores(studies, FileAdapterStore(tmp_path / "adapters"), MemoryTracker(), tmp_path)


def test_a_run_waits_for_the_one_before_it_up_to_a_limit(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    waited: list[float] = []
    there: set[str] = set()

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            stores.studies.open_attempt("mission", attempt())
        if len(waited) == 5:
            there.add(child_runs._key("mission", attempt(), stores))

    monkeypatch.setattr(child_runs.time, "sleep", wait)
    monkeypatch.setattr(child_runs, "_state", lambda key: Running() if key in there else None)
    child_runs.wait_for_run_of("cluster-00", "mission", stores)
    assert len(waited) == 5, "it was recorded before it was there"
    child_runs.wait_for_run_of("cluster-00", "mission", stores)
    assert len(waited) == 5, "it is there already"
    child_runs.wait_for_run_of("nobody", "mission", stores)
    assert sum(waited) < 70


def test_a_run_does_not_wait_for_one_that_has_ended(stores: Stores, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(child_runs, "_state", lambda _: None)
    stores.studies.open_attempt("mission", attempt())
    stores.studies.close_attempt("mission", "cluster-00", 1, state="done")
    child_runs.wait_for_run_of("cluster-00", "mission", stores)


def attempt(number: int = 1, micro_batch: int = 2) -> Attempt:
    return Attempt(group="cluster-00", number=number, micro_batch=micro_batch, state="running")


@flow
def nothing() -> None: ...


def run(state: State[None]) -> FlowRun:
    return FlowRun(flow_id=uuid4(), name="train · cluster 00", state=state)


class PrefectOf:
    """Prefect's client, of a run with these states."""

    def __init__(self, *states: State[None]) -> None:
        self.states = states

    def __call__(self, *, sync_client: bool) -> "PrefectOf":
        assert sync_client
        return self

    def __enter__(self) -> "PrefectOf":
        return self

    def __exit__(self, *_: object) -> None: ...

    def read_flow_run_states(self, _: UUID) -> list[State[None]]:
        return list(self.states)


def test_the_time_of_a_run_begins_when_a_worker_took_it(monkeypatch: pytest.MonkeyPatch):
    asked = datetime(2026, 3, 1, tzinfo=UTC)

    def after(state: State[None], minutes: int, seconds: int) -> State[None]:
        return state.model_copy(update={"timestamp": asked + timedelta(minutes=minutes, seconds=seconds)})

    waited = run(Completed()).model_copy(update={"end_time": asked + timedelta(minutes=30, seconds=28)})
    states = [after(Scheduled(), 0, 0), after(Pending(), 30, 0), after(Running(), 30, 5), after(Completed(), 30, 28)]
    monkeypatch.setattr(child_runs, "get_client", PrefectOf(*states))
    assert child_runs.seconds_on_worker(waited) == 28.0, "half an hour in the queue is not what a run takes to begin"
    monkeypatch.setattr(child_runs, "get_client", PrefectOf(states[0], states[2], states[3]))
    assert child_runs.seconds_on_worker(waited) is None, "no worker is known to have taken it"


@pytest.mark.whole
def test_prefect_tells_when_a_worker_took_a_run(prefect_server: str):
    with get_client(sync_client=True) as client:
        waiting = client.create_flow_run(nothing, state=Scheduled())
        time.sleep(2.0)
        for state in (Pending(), Running(), Completed()):
            client.set_flow_run_state(waiting.id, state)
        ended = client.read_flow_run(waiting.id)
    took = child_runs.seconds_on_worker(ended)
    assert took is not None
    assert ended.created is not None
    assert ended.end_time is not None
    assert 0 <= took < 1.9 < ended.end_time.timestamp() - ended.created.timestamp()


def retried(error: Exception) -> bool:
    return deserves_another_attempt(dispatch_training, TaskRun(task_key="dispatch", dynamic_key="0"), Failed(data=error))


def test_a_completed_run_records_no_attempt(stores: Stores):
    raise_unless_completed(run(Completed()), "mission", attempt(), stores)
    assert stores.studies.attempts("mission") == ()


def test_a_run_out_of_memory_is_retried_until_one_dialogue_does_not_fit(stores: Stores):
    for micro_batch, again in ((2, True), (1, False)):
        with pytest.raises(OutOfMemory, match="needs 4 GB") as caught:
            raise_unless_completed(
                run(Failed(name="OutOfMemory", message="needs 4 GB")), "mission", attempt(3 - micro_batch, micro_batch), stores
            )
        assert retried(caught.value) is again
    assert [a.state for a in stores.studies.attempts("mission")] == ["out_of_memory", "out_of_memory"]


@pytest.mark.parametrize("found", [True, False])
def test_a_run_that_is_found_stays_recorded_with_what_it_computes_with(stores: Stores, monkeypatch: pytest.MonkeyPatch, found: bool):
    study, group = Study(name="mission", recipe=Recipe(batch_size=8)), TrainingGroup("cluster-00", "cluster 00", ("cluster-00",))
    # Its device ran out of memory with more before.
    stores.studies.open_attempt("mission", attempt(micro_batch=2))
    request = next_request(study, group, stores)
    assert (request.attempt, request.micro_batch) == (1, 8)
    monkeypatch.setattr(child_runs, "_state", lambda _: Running() if found else None)
    monkeypatch.setattr(child_runs, "run_deployment", lambda *_, **__: run(Failed(name="OutOfMemory", message="needs 4 GB")))
    asked = attempt(micro_batch=request.micro_batch)
    with pytest.raises(OutOfMemory) as caught:
        child_runs.run_attempt(request, study, asked, stores, methods=("cluster",))
    used = 2 if found else 8
    assert caught.value.micro_batch == used
    assert [(a.micro_batch, a.state) for a in stores.studies.attempts("mission")] == [(used, "out_of_memory")]
    assert next_request(study, group, stores).micro_batch == used // 2


def test_a_crashed_run_is_retried_and_recorded(stores: Stores):
    with pytest.raises(CrashedChildError, match="cluster-00, attempt 1: process exited with -9") as caught:
        raise_unless_completed(run(Crashed(message="process exited with -9")), "mission", attempt(), stores)
    assert caught.value.crashes == 1
    assert retried(caught.value)
    assert [(a.state, a.detail) for a in stores.studies.attempts("mission")] == [("crashed", "process exited with -9")]


def test_the_third_crash_in_a_row_ends_the_retries():
    assert [retried(CrashedChildError("again", crashes=crashes)) for crashes in (1, 2, 3)] == [True, True, False]


@pytest.mark.parametrize("state", [Failed(message="BadData: line 7"), Cancelled(message="by a person")])
def test_a_run_that_failed_by_itself_or_was_cancelled_is_not_retried(stores: Stores, state: State[None]):
    with pytest.raises(FailedChildError, match=str(state.message)) as caught:
        raise_unless_completed(run(state), "mission", attempt(), stores)
    assert not retried(caught.value)
    assert stores.studies.attempts("mission")[0].state == "failed"


def status_error(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://prefect")
    return httpx.HTTPStatusError("answered", request=request, response=httpx.Response(code, request=request))


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ServiceDown("database is away"), True),
        (httpx.ConnectError("refused"), True),
        (status_error(503), True),
        (status_error(429), True),
        (status_error(404), False),
        (status_error(401), False),
        (BadData("no such column"), False),
        (KeyError("typo"), False),
    ],
)
def test_only_unavailable_services_are_retried_unchanged(error: Exception, again: bool):
    assert isinstance(error, ClusterLoraError | httpx.HTTPError | KeyError)
    assert retried(error) is again


def all_tasks() -> dict[str, Task[..., Any]]:
    task_by_name: dict[str, Task[..., Any]] = {}
    for file in Path(child_runs.__file__ or "").parent.glob("*.py"):
        module = importlib.import_module(f"tasks.{file.stem}")
        task_by_name |= {f"{file.stem}.{name}": value for name, value in vars(module).items() if isinstance(value, Task)}
    return task_by_name


@pytest.mark.parametrize(("name", "task"), all_tasks().items(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_task_is_retried_with_exponential_backoff_and_jitter(name: str, task: Task[..., Any]):
    pauses = task.retry_delay_seconds
    assert isinstance(pauses, list)
    assert len(pauses) == task.retries >= 2
    assert all(later == 2 * earlier for earlier, later in itertools.pairwise(pauses))
    assert task.retry_jitter_factor
    # Anything but a plain function is taken for a truth value, and then nothing is ever retried.
    assert type(task.retry_condition_fn) is FunctionType


def test_a_missing_column_is_an_error_and_not_an_outage(tmp_path: Path):
    store = SqlStudyStore(f"sqlite:///{tmp_path / 'studies.db'}")
    with sqlite3.connect(tmp_path / "studies.db") as connection:
        connection.execute("alter table verdicts rename column notes to other")
    store.create_study(prepared(Study(name="mission"), "float32"))
    with pytest.raises(DBAPIError) as caught:
        store.verdicts("mission")
    assert not retried(caught.value)


def test_run_names_have_the_step_the_study_and_the_batch():
    group = TrainingGroup("cluster-00", "cluster 00", ("cluster-00",))
    train = TrainRequest(study_name="mission", group=group, micro_batch=1, attempt=2)
    assert train.run_name == "train · cluster 00 · mission · micro-batch 1 · attempt 2"
    assert EvaluationRequest(study_name="mission", part="test", shards=2).run_name == "evaluate · test 1/2 · mission"
    gate = EvaluationRequest(study_name="mission", part="gate", rung="lower-lr")
    assert gate.run_name == "evaluate · gate 1/1 · mission · lower-lr"


def test_the_status_page_lists_failed_attempts(stores: Stores):
    stores.studies.close_attempt("mission", "cluster-00", 1, state="out_of_memory", detail="needs 4 GB | has 2")
    page = "\n".join(status_lines(read_state("mission", stores), stores.folder("mission"), "at the gate"))
    assert page.startswith("# mission: at the gate\n")
    assert "200 personas" in page
    assert "| cluster-00 | 1 | 0 | - | out_of_memory | " in page
    assert "needs 4 GB \\| has 2 |" in page
