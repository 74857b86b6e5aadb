"""Runs that should have started and have not: why, and the command that helps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from deployments.prefect_client import open_runs, parent_name

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, WorkPool

GRACE_SECONDS = 15.0
"""A worker asks for runs every few seconds; only a run that is later than this waits for something."""
BUSY_SECONDS = 60.0
"""From when on a run is said to wait for workers that do other work."""
_WITH_LOGIN = 'eval "$(clusterlora up --exports)" && '
"""Gives Prefect's own command the address and password of the local server."""


@dataclass(frozen=True, slots=True)
class PoolProblem:
    """What keeps a pool from starting runs, and what helps: `gpu`, `is paused`, a command."""

    pool: str
    what: str
    fix: str


def why_waiting(client: "SyncPrefectClient", study_name: str) -> tuple[str, ...]:
    """Return why runs of a study wait, one sentence per cause, with what helps; none when nothing keeps them."""
    runs = open_runs(client, study_name)
    late = [run for run in runs if run.work_pool_name and _seconds_late(run) > GRACE_SECONDS]
    if not late:
        return ()
    working = any(run.state is not None and run.state.is_running() for run in runs if run.name != parent_name(study_name))
    sentences: list[str] = []
    for pool in _pools(client, {str(run.work_pool_name) for run in late}):
        waiting = [run for run in late if run.work_pool_name == pool.name]
        problems = list(_problems(client, pool))
        if not problems and not working and max(map(_seconds_late, waiting)) > BUSY_SECONDS:
            problems = [PoolProblem(pool.name, "is busy with other runs", "wait, or look at them on the pool's page")]
        sentences += [f"{_described(waiting)} for pool {pool.name}, which {problem.what}; {problem.fix}" for problem in problems]
    return tuple(sentences)


def pool_problems(client: "SyncPrefectClient", names: Iterable[str]) -> tuple[PoolProblem, ...]:
    """Return what keeps these pools from starting runs."""
    return tuple(problem for pool in _pools(client, set(names)) for problem in _problems(client, pool))


def _problems(client: "SyncPrefectClient", pool: "WorkPool") -> Iterator[PoolProblem]:
    if pool.is_paused:
        yield PoolProblem(pool.name, "is paused", f"resume it: {_WITH_LOGIN}prefect work-pool resume {pool.name}")
        return
    for queue in client.read_work_queues(work_pool_name=pool.name):
        if queue.is_paused:
            fix = f"resume it: {_WITH_LOGIN}prefect work-queue resume {queue.name} --pool {pool.name}"
            yield PoolProblem(pool.name, f"has its queue {queue.name} paused", fix)
    if not any(worker.status == "ONLINE" for worker in client.read_workers_for_work_pool(pool.name)):
        start = "clusterlora up" if pool.type == "process" else f"{_WITH_LOGIN}prefect worker start --pool {pool.name} --type {pool.type}"
        yield PoolProblem(pool.name, "has no worker", f"start one: {start}")


def _pools(client: "SyncPrefectClient", names: set[str]) -> list["WorkPool"]:
    return [pool for pool in client.read_work_pools() if pool.name in names]


def _seconds_late(run: "FlowRun") -> float:
    """Return for how long a scheduled run should have started; 0 for one that has, or whose time has not come."""
    due = run.next_scheduled_start_time or run.expected_start_time
    if run.state is None or not run.state.is_scheduled() or due is None:
        return 0.0
    return max(0.0, (datetime.now(UTC) - due).total_seconds())


def _described(waiting: list["FlowRun"]) -> str:
    return f"{waiting[0].name} waits" if len(waiting) == 1 else f"{len(waiting)} runs wait ({waiting[0].name}, ...)"
