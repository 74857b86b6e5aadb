"""The decorator of every task that works on a study: it supplies the stores, a run log, the retry policy and, on request, the GPU."""

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Concatenate, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import Task

from clusterlora.ports.stores import Stores
from clusterlora.wiring import from_environment, return_freed_memory
from tasks.device import exclusive, visible_gpu
from tasks.retrying import SERVICE_AWAY, RetryPolicy
from tasks.run_log import PrefectRunLog

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class TaskContext:
    """What a task works with. The log's progress artifact is keyed by `progress`."""

    stores: Stores
    progress: str

    @cached_property
    def log(self) -> PrefectRunLog:
        """The run log; it exists only inside a run of Prefect."""
        return PrefectRunLog(self.progress)


def study_task(
    run_name: str, *, progress: str = "", retry: RetryPolicy = SERVICE_AWAY, on_gpu: bool = False
) -> Callable[[Callable[Concatenate[TaskContext, P], R]], Task[P, R]]:
    """Return a decorator that makes a function of (TaskContext, parameters...) a task of those parameters.

    Args:
        run_name: template of the task run's name, over the task's parameters.
        progress: template of the key of its progress artifact.
        retry: when, how often and after how long the task is retried.
        on_gpu: hold the lock of the GPU that this process sees while the task runs, and refuse to run without the one that it was given.
    """

    def decorate(function: Callable[Concatenate[TaskContext, P], R]) -> Task[P, R]:
        with_context = inspect.signature(function)
        signature = with_context.replace(parameters=list(with_context.parameters.values())[1:])

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            arguments = signature.bind(*args, **kwargs)
            arguments.apply_defaults()
            context = TaskContext(from_environment(), progress.format(**arguments.arguments))
            try:
                with exclusive(visible_gpu(), context.stores.home / ".locks") if on_gpu else nullcontext():
                    return function(context, *args, **kwargs)
            finally:
                return_freed_memory()

        # Prefect reads a task's parameters from its signature.
        run.__signature__ = signature  # pyrefly: ignore[missing-attribute]
        return task(task_run_name=run_name, cache_policy=NO_CACHE, **retry)(run)

    return decorate
