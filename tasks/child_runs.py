"""Runs of other deployments that a task starts, or finds, and waits for: each is one attempt of the work.

Attempts are numbered in the study database, and the number is in the idempotency key. A retry, or the parent launched again after a
crash, therefore finds the run of an attempt instead of starting a second one.
"""

import time
from collections.abc import Collection
from dataclasses import asdict
from typing import Any, NoReturn, cast

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import task_run as this_task_run
from prefect.tasks import Task, exponential_backoff

from clusterlora.errors import OutOfMemory, UnknownName
from clusterlora.ports.stores import Stores
from clusterlora.requests import EvaluationRequest, TrainRequest
from clusterlora.settings import Study
from clusterlora.values import Attempt
from clusterlora.wiring import forget_what_can_be_read_again
from tasks.retrying import RetryPolicy, is_transient
from tasks.run_names import method_tag, study_tag

MOST_HALVINGS = 4
MOST_CRASHES = 2
POLL_SECONDS = 2.0


class FailedChildError(RuntimeError):
    """A run failed, and another attempt would fail again."""


class CrashedChildError(RuntimeError):
    """A run died, or completed without its results; `crashes` counts such runs of this task run."""

    def __init__(self, message: str, *, crashes: int) -> None:
        super().__init__(message)
        self.crashes = crashes


def deserves_another_attempt(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether another attempt can succeed: with a smaller micro-batch, or after a machine or a service failed.

    Must be a plain function: with any other callable Prefect silently never retries.
    """
    error = state.data
    if isinstance(error, OutOfMemory):
        return error.micro_batch > 1
    if isinstance(error, CrashedChildError):
        return error.crashes <= MOST_CRASHES
    return is_transient(error)


def another_attempt(retries: int) -> RetryPolicy:
    """Return the retry policy of a task whose every try is one attempt of the work."""
    return {
        "retries": retries,
        "retry_delay_seconds": exponential_backoff(backoff_factor=2),
        "retry_jitter_factor": 0.5,
        "retry_condition_fn": deserves_another_attempt,
    }


def wait_for_run_of(group: str, study_name: str, stores: Stores) -> None:
    """Wait, for at most a minute, until the run of a group's latest attempt exists, so that runs are queued in order.

    The order only saves time, so nothing is raised when the run does not appear.
    """
    for _ in range(120):
        attempts = stores.studies.attempts(study_name, group)
        if attempts and (attempts[-1].state != "running" or _state(_key(study_name, attempts[-1], stores))):
            return
        time.sleep(0.5)


def close_cancelled_attempt(study_name: str, group: str, stores: Stores) -> None:
    """Close the open attempt of a group whose run was cancelled with its study, so that the study, taken up again, makes another attempt.

    A run that is still being cancelled is waited for.
    """
    attempts = stores.studies.attempts(study_name, group)
    if not attempts or attempts[-1].state != "running":
        return
    key = _key(study_name, attempts[-1], stores)
    while (state := _state(key)) is not None and state.is_cancelling():
        time.sleep(POLL_SECONDS)
    if state is not None and state.is_cancelled():
        detail = state.message or "its run was cancelled"
        stores.studies.close_attempt(study_name, group, attempts[-1].number, state="cancelled", detail=detail)


def _key(study_name: str, attempt: Attempt, stores: Stores) -> str:
    # A study deleted and made again under its name must not find the runs of the first one.
    created = next(created for name, _, created in stores.studies.studies() if name == study_name)
    return f"{study_name}/{created}/{attempt.group}/attempt-{attempt.number}"


def _state(key: str) -> State[Any] | None:
    """Return the state of the run with this idempotency key; None if there is no such run."""
    with get_client(sync_client=True) as client:
        with_key = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
        runs = client.read_flow_runs(flow_run_filter=with_key, limit=1)
    return runs[0].state if runs else None


def run_attempt(
    request: TrainRequest | EvaluationRequest, study: Study, attempt: Attempt, stores: Stores, *, methods: Collection[str]
) -> FlowRun:
    """Return the attempt's run, started or found, once it completed; if it ended otherwise, record how and raise."""
    key = _key(study.name, attempt, stores)
    is_recorded = attempt.number in {one.number for one in stores.studies.attempts(study.name, attempt.group)}
    # Recorded before the run exists: a run that dies before its first line still counts, with its micro-batch. One that is found computes
    # with what is recorded, whatever would be asked for now.
    if not (is_recorded and _state(key)):
        stores.studies.open_attempt(study.name, attempt)
    forget_what_can_be_read_again()
    flow, pool = "train" if isinstance(request, TrainRequest) else "evaluate", study.runtime.gpu_pool
    deployment = f"{flow}/{flow}" if pool == "gpu" else f"{flow}/{flow}-{pool}"
    try:
        run = cast(
            "FlowRun",
            run_deployment(
                deployment,
                parameters={"request": asdict(request)},
                flow_run_name=request.run_name,
                idempotency_key=key,
                tags=[study_tag(study.name), *map(method_tag, sorted(methods))],
                poll_interval=POLL_SECONDS,
            ),
        )
    except ObjectNotFound as error:
        raise UnknownName(
            f"no deployment {deployment} for pool {pool!r}; run `prefect deploy --all` or set runtime.gpu_pool=gpu"
        ) from error
    raise_unless_completed(run, study.name, attempt, stores)
    return run


def seconds_on_worker(run: FlowRun) -> float | None:
    """Return the seconds from when a worker took the run until it ended, by Prefect's clock: without its wait in the queue.

    None where Prefect has not recorded both.
    """
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(run.id)
    taken = [state.timestamp.timestamp() for state in states if state.is_pending()]
    if not taken or run.end_time is None:
        return None
    return run.end_time.timestamp() - max(taken)


def raise_unless_completed(run: FlowRun, study_name: str, attempt: Attempt, stores: Stores) -> None:
    """Unless the run completed, record how its attempt ended and raise the error that decides about a retry."""
    state = run.state
    assert state is not None, f"run {run.id} was waited for and has no state"
    message = state.message or f"{run.name} ended {state.name}"
    if state.is_completed():
        return
    if state.is_crashed():
        count_crash(study_name, attempt, "crashed", message, stores)
    if state.name == "OutOfMemory":
        stores.studies.close_attempt(study_name, attempt.group, attempt.number, state="out_of_memory", detail=message)
        # The run may have started with a smaller micro-batch than requested, from what its device ran out of before.
        started = next(a for a in stores.studies.attempts(study_name, attempt.group) if a.number == attempt.number)
        raise OutOfMemory(message, micro_batch=started.micro_batch or attempt.micro_batch)
    stores.studies.close_attempt(study_name, attempt.group, attempt.number, state="failed", detail=message)
    raise FailedChildError(f"{run.name} ended {state.name}: {message}")


def count_crash(study_name: str, attempt: Attempt, state: str, detail: str, stores: Stores) -> NoReturn:
    """Record that an attempt died or left no results, and raise CrashedChildError with the number of such attempts of this task run."""
    stores.studies.close_attempt(study_name, attempt.group, attempt.number, state=state, detail=detail)
    tries = this_task_run.run_count or 1
    ended = [a for a in stores.studies.attempts(study_name, attempt.group) if a.number > attempt.number - tries]
    crashes = max(1, sum(a.state in ("crashed", "lost") for a in ended))
    raise CrashedChildError(f"{attempt.group}, attempt {attempt.number}: {detail}", crashes=crashes)
