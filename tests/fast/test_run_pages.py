"""Who looks at all runs of the Prefect server finds those beyond its first page, too."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled

from deployments import local_workers, supervise, waiting_runs
from deployments.prefect_status import studies_in_prefect
from deployments.supervise import crash_dead_runs
from tasks import outcome, refreshes
from tasks.run_pages import MOST_RUNS

N_RUNS = 2 * MOST_RUNS + 1


@flow
def parent() -> None: ...


class Server:
    """A Prefect server with running runs, of which one request returns so many. The process of each is dead."""

    def __init__(self) -> None:
        state = State(type=StateType.RUNNING)
        self.runs = [
            FlowRun(id=UUID(int=n), flow_id=UUID(int=0), name=f"run {n}", state=state, infrastructure_pid="0") for n in range(1, N_RUNS + 1)
        ]
        self.states: dict[UUID, State[Any]] = {}

    def read_flow_runs(self, *, limit: int = MOST_RUNS, offset: int = 0, **_query: Any) -> list[FlowRun]:
        assert limit <= 200, "Prefect's server refuses to return more"
        return self.runs[offset : offset + limit]

    def read_flow_run(self, run_id: UUID) -> FlowRun:
        return self.runs[run_id.int - 1]

    def set_flow_run_state(self, run_id: UUID, state: State[Any]) -> None:
        self.states[run_id] = state


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()

    @contextmanager
    def client(**_options: Any) -> Generator[Server]:
        yield server

    for module in (outcome, refreshes):
        monkeypatch.setattr(module, "get_client", client)
    return server


def test_a_cancelled_study_cancels_all_of_its_runs(server: Server) -> None:
    outcome.cancel_children(parent, FlowRun(id=UUID(int=0), flow_id=UUID(int=0), parameters={}), Cancelled())
    assert {run_id.int: state.type for run_id, state in server.states.items()} == dict.fromkeys(range(1, N_RUNS + 1), StateType.CANCELLING)


def test_all_runs_whose_process_died_are_crashed(server: Any) -> None:
    assert set(crash_dead_runs(server)) == {run.name for run in server.runs}
    assert {state.type for state in server.states.values()} == {StateType.CRASHED}


def test_a_run_in_a_container_counts_as_living_until_its_worker_says_that_it_ended(server: Any, paged: list[dict[str, Any]]) -> None:
    container = "http+docker://localhost:3f2a9c"
    server.runs[0].infrastructure_pid = container
    assert server.runs[0].name not in crash_dead_runs(server)
    paged.append({"id": 1, "name": "train", "deployment_id": "train", "infrastructure_pid": container})
    assert local_workers.unfinished_runs({}) == ("train",)


def test_a_refresh_beyond_the_first_page_is_found(server: Server, stores: Any) -> None:
    server.runs[-1].parameters = {"request": {"study_name": "small"}}
    assert refreshes.refresh_under_way("small", stores) == server.runs[-1].name


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the runs of a server that answers without Prefect's client, the latest first."""
    runs: list[dict[str, Any]] = []

    def request(path: str, body: dict[str, Any], **_options: Any) -> list[dict[str, Any]]:
        assert path == "flow_runs/filter"
        return runs[body["offset"] : body["offset"] + body["limit"]]

    monkeypatch.setattr(waiting_runs.prefect_rest, "request", request)
    return runs


def test_the_services_stay_up_for_a_live_run_behind_a_page_of_dead_ones(
    paged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paged += [{"id": n, "name": f"run {n}", "deployment_id": "study", "infrastructure_pid": str(n)} for n in range(1, N_RUNS + 1)]
    monkeypatch.setattr(supervise, "is_flow_process", lambda pid: pid == N_RUNS)
    assert local_workers.unfinished_runs({}) == (f"run {N_RUNS}",)


def test_a_study_that_waits_is_found_behind_a_page_of_later_ones(paged: list[dict[str, Any]]) -> None:
    paged += [{"id": n, "tags": [f"study:null-{n}"], "parameters": {}, "state_type": "COMPLETED"} for n in range(2, N_RUNS + 1)]
    paged.append({"id": 1, "tags": ["study:mine"], "parameters": {}, "state_type": "PAUSED"})
    seen = studies_in_prefect({"mine": "running", "null-7": "finished"}, {}, decided_by=lambda _: None)
    assert {name: one.status for name, one in seen.items()} == {"mine": "waits for a decision", "null-7": "finished"}
