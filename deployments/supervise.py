"""Marks runs of the local services as Crashed if their process died, so that the study can retry them.

Prefect's way, an automation on missing heartbeats, needs PostgreSQL: on SQLite its event counters lose writes ("database is locked"), and
living runs would be crashed. On one machine the pid is also more reliable.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from deployments import processes
from tasks.run_pages import all_runs

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

START_PATIENCE = timedelta(minutes=5)
"""How long a run that a worker has taken may be without a process; a busy machine needs most of a minute."""


def crash_dead_runs(client: "SyncPrefectClient") -> tuple[str, ...]:
    """Mark runs whose process died, and their subflows, as Crashed; return their names."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    unfinished = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]))
    crashed: list[str] = []
    for run in all_runs(client, flow_run_filter=FlowRunFilter(state=unfinished)):
        # A run that ended since the first request has no process either, so its state is read again last.
        if _is_dead(run, client) and not _ended(run.id, client):
            client.set_flow_run_state(run.id, Crashed(message="the run's process died"))
            crashed.append(run.name)
    return tuple(crashed)


def _is_dead(run: "FlowRun", client: "SyncPrefectClient") -> bool:
    if run.infrastructure_pid:
        return not may_live(run.infrastructure_pid)
    if run.deployment_id is None and run.parent_task_run_id is not None:
        parent = client.read_task_run(run.parent_task_run_id).flow_run_id
        return parent is not None and _ended(parent, client)
    return run.state is not None and run.state.is_pending() and datetime.now(UTC) - run.state.timestamp > START_PATIENCE


def _ended(run_id: UUID, client: "SyncPrefectClient") -> bool:
    state = client.read_flow_run(run_id).state
    return state is not None and state.is_final()


def may_live(pid: str | None) -> bool:
    """Return whether a run may live, by what its worker called its process; one without may be about to begin.

    A container is no process of this machine, and what Prefect calls it is no number: its own worker tells how it ends.
    """
    return not pid or not pid.isdecimal() or is_flow_process(int(pid))


def is_flow_process(pid: int) -> bool:
    """Return whether the pid is a process that runs a flow, or is about to: another process may have got the pid of a dead one.

    Before it becomes the flow's process it asks the server twice, which takes seconds where the machine is busy (deployments/run.py).
    """
    command = processes.command_line(pid)
    return "prefect" in command or "deployments.run" in command
