"""What a study's runs look like on the Prefect server, as plain values."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import httpx

from clusterlora.errors import ServiceDown
from clusterlora.stages.verify import LiveWork
from deployments.stack import Stack

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

MOST_RUNS = 200
"""Prefect's own limit on what one request returns."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a study. `percent` and `progress` come from its progress artifact; `seconds` is how long it has run."""

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
class Snapshot:
    """The parent run of a study, and all its runs in the order they began. `waiting` says that it is suspended until a person decides."""

    parent: Run
    runs: tuple[Run, ...]
    ended: bool
    completed: bool
    waiting: bool = False


@contextmanager
def connect(stack: Stack | None) -> "Generator[SyncPrefectClient]":
    """Yield a client of the stack's Prefect server, or of the one in the environment.

    Sets the stack's addresses in this process's environment before Prefect reads them.

    Raises:
        ServiceDown: the server does not answer, or does not let us in.
    """
    if stack is not None:
        os.environ.update(stack.environment())
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    # Prefect reads its environment once; a stack may have moved since.
    here = temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]} if stack else {})
    with here, get_client(sync_client=True) as client:
        address = f"Prefect at {str(client.api_url.copy_with(userinfo=b'')).rstrip('/')}"
        try:
            yield client
        except httpx.TransportError as away:
            raise ServiceDown(f"{address} does not answer ({away}); start it (`clusterlora up`) or correct PREFECT_API_URL") from away
        except httpx.HTTPStatusError as refusal:
            code = refusal.response.status_code
            if code in (401, 403):
                raise ServiceDown(f"{address} does not let you in; set PREFECT_API_AUTH_STRING to its user:password") from refusal
            if code < 500:
                raise
            raise ServiceDown(f"{address} is not well (it answers {code}); look at its log, or start it again") from refusal


def parent_name(study_name: str) -> str:
    """Return what the study's parent run is called, as flows/study.py calls it."""
    return f"study · {study_name}"


def latest_open_run(client: "SyncPrefectClient", study_name: str) -> UUID | None:
    """Return the id of the study's parent run that has not ended, if there is one."""
    parents = [run for run in _runs_of(client, study_name) if run.name == parent_name(study_name) and not _final(run)]
    return parents[-1].id if parents else None


def live_work(client: "SyncPrefectClient", study_name: str) -> LiveWork:
    """Return what is under way of a study: runs that have not ended, whether or not their process lives."""
    open_runs = [run for run in _runs_of(client, study_name) if not _final(run)]
    # `train` is asked for a group's attempt, `evaluate` counts its attempts under its own name.
    requests = [run.parameters.get("request", {}) for run in open_runs]
    attempts = frozenset((asked["group"]["name"], asked["attempt"]) for asked in requests if "group" in asked)
    return LiveWork(frozenset(run.name for run in open_runs), attempts)


def snapshot(client: "SyncPrefectClient", run_id: UUID, study_name: str) -> Snapshot:
    """Return the study's parent run and its children of this launch, with their latest progress."""
    parent = client.read_flow_run(run_id)
    began = parent.expected_start_time or parent.created
    children = [
        run
        for run in _runs_of(client, study_name)
        if run.id != run_id and (not _final(run) or (run.start_time and began and run.start_time >= began))
    ]
    progress = _progress(client, [run.id for run in (parent, *children) if not _final(run)])
    state = parent.state
    return Snapshot(
        parent=_as_run(parent, progress),
        runs=tuple(_as_run(run, progress) for run in children),
        ended=_final(parent),
        completed=state is not None and state.is_completed(),
        waiting=state is not None and state.is_paused(),
    )


def _runs_of(client: "SyncPrefectClient", study_name: str) -> "list[FlowRun]":
    """Return the runs tagged with the study, in the order they were to start."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
    from prefect.client.schemas.sorting import FlowRunSort

    latest = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[f"study:{study_name}"])),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=MOST_RUNS,
    )
    return latest[::-1]


def _progress(client: "SyncPrefectClient", run_ids: list[UUID]) -> dict[UUID, tuple[float, str]]:
    """Return (percent, text) of the latest progress artifact of each run that has one."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType
    from prefect.client.schemas.sorting import ArtifactSort

    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=run_ids), type=ArtifactFilterType(any_=["progress"]))
    found = client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC, limit=MOST_RUNS) if run_ids else []
    # The oldest first, so that the latest of a run has the last word. A phase that is complete says nothing of what the run does.
    latest = {a.flow_run_id: (float(str(a.data or 0)), a.description or "") for a in reversed(found) if a.flow_run_id is not None}
    return {run_id: (percent, text) for run_id, (percent, text) in latest.items() if percent < 100}


def _as_run(run: "FlowRun", progress: dict[UUID, tuple[float, str]]) -> Run:
    percent, text = progress.get(run.id, (None, ""))
    began, ended = run.start_time, run.end_time or datetime.now(UTC)
    return Run(
        id=run.id,
        name=run.name,
        state=(run.state and run.state.name) or "Unknown",
        message=(run.state.message if run.state else None) or "",
        open=not _final(run),
        running=run.state is not None and run.state.is_running(),
        seconds=(ended - began).total_seconds() if began else 0.0,
        percent=percent,
        progress=text,
    )


def _final(run: "FlowRun") -> bool:
    return run.state is not None and run.state.is_final()
