"""The runs of a study on the Prefect server, as plain values."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import httpx

from clusterlora.errors import ServiceDown
from clusterlora.verify import LiveWork
from deployments.local_services import LocalServices
from deployments.waiting_runs import OPEN_STATES
from tasks.run_pages import MOST_RUNS, all_runs

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import FlowRun


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """One run of a study. `percent` and `progress` come from its progress artifact; `seconds` is the time it has run."""

    id: UUID
    name: str
    state: str
    message: str
    open: bool
    running: bool
    seconds: float
    percent: float | None = None
    progress: str = ""


@dataclass(frozen=True, slots=True)
class StudySnapshot:
    """The parent run of a study and its other runs in order of start. `waiting`: the parent is suspended until a person decides."""

    parent: RunSnapshot
    runs: tuple[RunSnapshot, ...]
    ended: bool
    completed: bool
    waiting: bool = False


@contextmanager
def connect(services: LocalServices | None) -> "Generator[SyncPrefectClient]":
    """Yield a client of the local Prefect server, or without one, of the server in the environment.

    Sets the addresses of the local services in this process's environment before Prefect reads them.

    Raises:
        ServiceDown: the server does not answer, or refuses the login.
    """
    if services is not None:
        os.environ.update(services.environment())
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    # Prefect reads its environment once; the services may have got other ports since.
    settings = temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]} if services else {})
    with settings, get_client(sync_client=True) as client:
        address = f"Prefect at {str(client.api_url.copy_with(userinfo=b'')).rstrip('/')}"
        try:
            yield client
        except httpx.TransportError as error:
            raise ServiceDown(f"{address} does not answer ({error}); start it (`clusterlora up`) or correct PREFECT_API_URL") from error
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            if code in (401, 403):
                raise ServiceDown(f"{address} refuses the login; set PREFECT_API_AUTH_STRING to its user:password") from error
            if code < 500:
                raise
            raise ServiceDown(f"{address} fails with status {code}; look at its log, or restart it") from error


def parent_name(study_name: str) -> str:
    """Return the name of the study's parent run, as in flows/study.py."""
    return f"study · {study_name}"


def latest_open_run(client: "SyncPrefectClient", study_name: str) -> UUID | None:
    """Return the id of the study's unfinished parent run; None if there is none."""
    parents = [run for run in open_runs(client, study_name) if run.name == parent_name(study_name)]
    return parents[-1].id if parents else None


def live_work(client: "SyncPrefectClient", study_name: str) -> LiveWork:
    """Return the unfinished runs of a study; their processes may be dead."""
    unfinished = open_runs(client, study_name)
    # A request of `train` names a group and its attempt; `evaluate` counts its attempts under its own name.
    requests = [run.parameters.get("request", {}) for run in unfinished]
    attempts = frozenset((request["group"]["name"], request["attempt"]) for request in requests if "group" in request)
    return LiveWork(frozenset(run.name for run in unfinished), attempts)


def open_runs(client: "SyncPrefectClient", study_name: str) -> "list[FlowRun]":
    """Return all unfinished runs of a study, however many, in order of their expected start."""
    return all_runs(client, flow_run_filter=_of_study(study_name, OPEN_STATES))


def snapshot(client: "SyncPrefectClient", run_id: UUID, study_name: str) -> StudySnapshot:
    """Return the study's parent run and the runs it started since its launch, with their latest progress."""
    from prefect.client.schemas.sorting import FlowRunSort

    parent = client.read_flow_run(run_id)
    launched = parent.expected_start_time or parent.created
    children = [run for run in open_runs(client, study_name) if run.id != run_id]
    # Of those that ended the latest, which are as many as somebody reads.
    known = {run_id, *(run.id for run in children)}
    latest = client.read_flow_runs(flow_run_filter=_of_study(study_name), sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=MOST_RUNS)
    ended = [run for run in latest[::-1] if run.id not in known and _is_final(run)]
    children = [*(run for run in ended if run.start_time and launched and run.start_time >= launched), *children]
    progress = _progress(client, [run.id for run in (parent, *children) if not _is_final(run)])
    state = parent.state
    return StudySnapshot(
        parent=_run_snapshot(parent, progress),
        runs=tuple(_run_snapshot(run, progress) for run in children),
        ended=_is_final(parent),
        completed=state is not None and state.is_completed(),
        waiting=state is not None and state.is_paused(),
    )


def _of_study(study_name: str, states: Sequence[str] | None = None) -> "FlowRunFilter":
    """Return the query of the runs tagged with the study. `states`: types; None for all."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType, FlowRunFilterTags
    from prefect.client.schemas.objects import StateType

    in_states = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType(state) for state in states])) if states else None
    return FlowRunFilter(tags=FlowRunFilterTags(all_=[f"study:{study_name}"]), state=in_states)


def _progress(client: "SyncPrefectClient", run_ids: list[UUID]) -> dict[UUID, tuple[float, str]]:
    """Return (percent, text) of the latest progress artifact of each run that has one; a complete phase is left out."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType
    from prefect.client.schemas.sorting import ArtifactSort

    progress_of_runs = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=run_ids), type=ArtifactFilterType(any_=["progress"]))
    order = ArtifactSort.CREATED_DESC
    artifacts = client.read_artifacts(artifact_filter=progress_of_runs, sort=order, limit=MOST_RUNS) if run_ids else []
    # Oldest first, so that a run's latest artifact wins.
    latest = {a.flow_run_id: (float(str(a.data or 0)), a.description or "") for a in reversed(artifacts) if a.flow_run_id is not None}
    return {run_id: (percent, text) for run_id, (percent, text) in latest.items() if percent < 100}


def _run_snapshot(run: "FlowRun", progress: dict[UUID, tuple[float, str]]) -> RunSnapshot:
    percent, text = progress.get(run.id, (None, ""))
    started, ended = run.start_time, run.end_time or datetime.now(UTC)
    return RunSnapshot(
        id=run.id,
        name=run.name,
        state=(run.state and run.state.name) or "Unknown",
        message=(run.state.message if run.state else None) or "",
        open=not _is_final(run),
        running=run.state is not None and run.state.is_running(),
        seconds=(ended - started).total_seconds() if started else 0.0,
        percent=percent,
        progress=text,
    )


def _is_final(run: "FlowRun") -> bool:
    return run.state is not None and run.state.is_final()
