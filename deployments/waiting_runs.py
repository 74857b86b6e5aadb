"""Runs that should have started and have not: why, and the command that helps."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from deployments import prefect_rest
from tasks.run_pages import MOST_RUNS

GRACE_SECONDS = 15.0
"""A worker asks for runs every few seconds; only a run that is later than this waits for something."""
BUSY_SECONDS = 60.0
"""From when on a run is said to wait for workers that do other work."""
OPEN_STATES = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")
"""Types of Prefect's states in which a run has not ended."""
WITH_LOGIN = 'eval "$(clusterlora up --exports)" && '
"""Gives Prefect's own command the address and password of the local server."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something about a study that only Prefect knows, and the command that helps."""

    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}; {self.fix}"


@dataclass(frozen=True, slots=True)
class PoolProblem:
    """What keeps a pool from starting runs, and what helps: `gpu`, `is paused`, a command."""

    pool: str
    what: str
    fix: str


def why_waiting(study_name: str, environment: Mapping[str, str], *, parent: Mapping[str, Any] | None = None) -> tuple[Note, ...]:
    """Return why runs of a study wait, a note per cause; none when nothing keeps them.

    Args:
        environment: address and login of the Prefect server.
        parent: the study's own run, which has no tag before it begins if it was launched from the page.

    Raises:
        ServiceDown: the server does not answer.
    """
    runs = study_runs(study_name, environment)
    if parent is not None and parent["id"] not in {run["id"] for run in runs}:
        runs = [*runs, parent]
    late = [run for run in runs if run["work_pool_name"] and _seconds_late(run) > GRACE_SECONDS]
    if not late:
        return ()
    # The study's own run waits for those that it starts.
    working = any(run["state_type"] == "RUNNING" and run["name"] != f"study · {study_name}" for run in runs)
    notes: list[Note] = []
    for pool in _pools({run["work_pool_name"] for run in late}, environment):
        waiting = [run for run in late if run["work_pool_name"] == pool["name"]]
        problems = list(_problems(pool, environment))
        if not problems and not working and max(map(_seconds_late, waiting)) > BUSY_SECONDS:
            problems = [PoolProblem(pool["name"], "is busy with other runs", "wait, or look at them on the pool's page")]
        notes += [Note(f"{_described(waiting)} for pool {pool['name']}, which {problem.what}", problem.fix) for problem in problems]
    return tuple(notes)


def pool_problems(names: Iterable[str], environment: Mapping[str, str]) -> tuple[PoolProblem, ...]:
    """Return what keeps these pools from starting runs; arguments and errors as `why_waiting`."""
    return tuple(problem for pool in _pools(set(names), environment) for problem in _problems(pool, environment))


def study_runs(study_name: str, environment: Mapping[str, str], *, states: Sequence[str] = OPEN_STATES) -> Sequence[Mapping[str, Any]]:
    """Return the runs of a study in one of these states, latest first; arguments and errors as `why_waiting`."""
    query = {"flow_runs": {"tags": {"all_": [f"study:{study_name}"]}, "state": {"type": {"any_": list(states)}}}}
    return tuple(latest_runs(query, environment))


def latest_runs(query: Mapping[str, Any], environment: Mapping[str, str], *, tries: int = 1) -> Iterator[Mapping[str, Any]]:
    """Yield the runs that a query finds, latest first, page by page as they are taken; arguments and errors as `why_waiting`."""
    known: set[str] = set()
    offset, is_last = 0, False
    while not is_last:
        asked = {**query, "sort": "EXPECTED_START_TIME_DESC", "limit": MOST_RUNS, "offset": offset}
        page = _request("flow_runs/filter", asked, environment, tries)
        yield from (run for run in page if run["id"] not in known)
        known.update(run["id"] for run in page)
        # Pages overlap: when runs of one end before the next is read, those behind them move up.
        offset += MOST_RUNS // 2
        is_last = len(page) < MOST_RUNS


def _problems(pool: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[PoolProblem]:
    name, path = pool["name"], f"work_pools/{quote(pool['name'], safe='')}"
    if pool["is_paused"]:
        yield PoolProblem(name, "is paused", f"resume it: {WITH_LOGIN}prefect work-pool resume {name}")
        return
    for queue in _request(f"{path}/queues/filter", {}, environment):
        if queue["is_paused"]:
            fix = f"resume it: {WITH_LOGIN}prefect work-queue resume {queue['name']} --pool {name}"
            yield PoolProblem(name, f"has its queue {queue['name']} paused", fix)
    if not any(worker["status"] == "ONLINE" for worker in _request(f"{path}/workers/filter", {}, environment)):
        start = "clusterlora up" if pool["type"] == "process" else f"{WITH_LOGIN}prefect worker start --pool {name} --type {pool['type']}"
        yield PoolProblem(name, "has no worker", f"start one: {start}")


def _pools(names: set[str], environment: Mapping[str, str]) -> list[Mapping[str, Any]]:
    return [pool for pool in _request("work_pools/filter", {}, environment) if pool["name"] in names]


def _request(path: str, body: Mapping[str, Any], environment: Mapping[str, str], tries: int = 1) -> Any:
    return prefect_rest.request(path, body, environment=environment, tries=tries)


def _seconds_late(run: Mapping[str, Any]) -> float:
    """Return for how long a scheduled run should have started; 0 for one that has, or whose time has not come."""
    due = run["next_scheduled_start_time"] or run["expected_start_time"]
    if run["state_type"] != "SCHEDULED" or due is None:
        return 0.0
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(due)).total_seconds())


def _described(waiting: Sequence[Mapping[str, Any]]) -> str:
    """Return what waits, named after the first of the runs, which come latest first."""
    first = waiting[-1]["name"]
    return f"{first} waits" if len(waiting) == 1 else f"{len(waiting)} runs wait ({first}, ...)"
