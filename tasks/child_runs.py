"""Runs of other deployments that a task starts, or finds, and waits for: one attempt of the work each.

Attempts are numbered in the study database, and the number is in the idempotency key: whoever asks for the same attempt,
a retry or a fresh parent after a crash, finds the run that is already there instead of starting a second one.
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
from tasks.retrying import RetryPolicy, is_transient
from tasks.run_names import method_tag, study_tag

MOST_HALVINGS = 4
MOST_CRASHES = 2
ASK_EVERY_SECONDS = 2.0


class FailedChildError(RuntimeError):
    """A run ended in a way that another attempt cannot cure."""


class CrashedChildError(RuntimeError):
    """A run died, or ended without leaving its work behind; `crashes` counts those of this task run."""

    def __init__(self, message: str, *, crashes: int) -> None:
        super().__init__(message)
        self.crashes = crashes


def deserves_another_attempt(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether a retry can help: less memory asked for, a machine that died, a service that was away.

    Must be a plain function: with any other callable Prefect silently never retries.
    """
    error = state.data
    if isinstance(error, OutOfMemory):
        return error.micro_batch > 1
    if isinstance(error, CrashedChildError):
        return error.crashes <= MOST_CRASHES
    return is_transient(error)


def another_attempt(retries: int) -> RetryPolicy:
    """Return the retry policy of a task each try of which is one attempt of the work."""
    return {
        "retries": retries,
        "retry_delay_seconds": exponential_backoff(backoff_factor=2),
        "retry_jitter_factor": 0.5,
        "retry_condition_fn": deserves_another_attempt,
    }


def stand_in_line(study_name: str, after: str, stores: Stores) -> None:
    """Wait until the run of what comes before is there, but no longer than a busy machine may take: the order only saves time."""
    for _ in range(120):
        attempts = stores.studies.attempts(study_name, after)
        if attempts and (attempts[-1].state != "running" or _exists(_key(study_name, attempts[-1], stores))):
            return
        time.sleep(0.5)


def _key(study_name: str, attempt: Attempt, stores: Stores) -> str:
    # A study deleted and made again under its name must not find the runs of the first one.
    created = next(created for known, _, created in stores.studies.studies() if known == study_name)
    return f"{study_name}/{created}/{attempt.group}/attempt-{attempt.number}"


def _exists(key: str) -> bool:
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
        return bool(client.read_flow_runs(flow_run_filter=wanted, limit=1))


def see_through(
    request: TrainRequest | EvaluationRequest, study: Study, attempt: Attempt, stores: Stores, *, methods: Collection[str]
) -> None:
    """Start the attempt's run, or find it, and wait; return when it completed, else record how it ended and raise."""
    # Recorded before the run exists: a run that dies before its first line still counts, with its micro-batch.
    stores.studies.open_attempt(study.name, attempt)
    flow, pool = "train" if isinstance(request, TrainRequest) else "evaluate", study.runtime.gpu_pool
    deployment = f"{flow}/{flow}" if pool == "gpu" else f"{flow}/{flow}-{pool}"
    try:
        run = cast(
            "FlowRun",
            run_deployment(
                deployment,
                parameters={"request": asdict(request)},
                flow_run_name=request.run_name,
                idempotency_key=_key(study.name, attempt, stores),
                tags=[study_tag(study.name), *map(method_tag, sorted(methods))],
                poll_interval=ASK_EVERY_SECONDS,
            ),
        )
    except ObjectNotFound as error:
        raise UnknownName(
            f"no deployment {deployment} for pool {pool!r}; run `prefect deploy --all` or set runtime.gpu_pool=gpu"
        ) from error
    settle(run, study.name, attempt, stores)


def settle(run: FlowRun, study_name: str, attempt: Attempt, stores: Stores) -> None:
    """Return when the run completed; else record how its attempt ended and raise what Prefect's retry decides by."""
    state = run.state
    assert state is not None, f"run {run.id} was waited for and has no state"
    message = state.message or f"{run.name} ended {state.name}"
    if state.is_completed():
        return
    if state.is_crashed():
        count_crash(study_name, attempt, "crashed", message, stores)
    if state.name == "OutOfMemory":
        stores.studies.close_attempt(study_name, attempt.group, attempt.number, state="out_of_memory", detail=message)
        # The run may have begun with less than it was asked for, knowing the device.
        begun = next(a for a in stores.studies.attempts(study_name, attempt.group) if a.number == attempt.number)
        raise OutOfMemory(message, micro_batch=begun.micro_batch or attempt.micro_batch)
    stores.studies.close_attempt(study_name, attempt.group, attempt.number, state="failed", detail=message)
    raise FailedChildError(f"{run.name} ended {state.name}: {message}")


def count_crash(study_name: str, attempt: Attempt, state: str, detail: str, stores: Stores) -> NoReturn:
    """Record that an attempt died or left nothing, and raise CrashedChildError with how often that happened to this task run."""
    stores.studies.close_attempt(study_name, attempt.group, attempt.number, state=state, detail=detail)
    tries = this_task_run.run_count or 1
    ended = [a for a in stores.studies.attempts(study_name, attempt.group) if a.number > attempt.number - tries]
    crashes = max(1, sum(a.state in ("crashed", "lost") for a in ended))
    raise CrashedChildError(f"{attempt.group}, attempt {attempt.number}: {detail}", crashes=crashes)
