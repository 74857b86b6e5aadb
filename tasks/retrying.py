"""Which errors are worth a retry, how many times, and after how long."""

from collections.abc import Callable
from typing import Any, TypedDict

import httpx
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import RetryConditionCallable, Task, exponential_backoff

from clusterlora.errors import ServiceDown


class RetryPolicy(TypedDict):
    """The arguments of a Prefect task that set when, how often and after how long it is retried."""

    retries: int
    retry_delay_seconds: Callable[[int], list[float]]
    retry_jitter_factor: float
    retry_condition_fn: RetryConditionCallable


def is_transient(error: object) -> bool:
    """Return whether an error may go away by itself: no connection, a locked or restarting database, a server's 5xx or 429.

    Errors in code or data do not, nor does a request that a server refuses.
    """
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, ServiceDown | httpx.TransportError)


def service_was_away(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether a task failed because a service did not answer; any other failure would repeat.

    Must be a plain function: with any other callable Prefect silently never retries.
    """
    return is_transient(state.data)


SERVICE_AWAY: RetryPolicy = {
    "retries": 4,
    "retry_delay_seconds": exponential_backoff(backoff_factor=5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": service_was_away,
}
"""Retries after 5, 10, 20 and 40 s, each up to half longer so that tasks do not retry all at once."""
