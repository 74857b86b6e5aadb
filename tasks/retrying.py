"""When it is worth doing the same thing again."""

from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from clusterlora.errors import ServiceDown


def service_was_away(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether a task failed because a service did not answer; anything else would only fail again."""
    return isinstance(state.data, ServiceDown)
