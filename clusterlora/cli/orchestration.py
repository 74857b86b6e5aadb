"""The one seam to what is outside the wheel: `deployments` (servers, workers, launching) lives in the checkout.

Everything here is imported when called, so the core neither needs Prefect nor knows it.
"""

import importlib
import os
from pathlib import Path
from types import ModuleType

import click

from clusterlora.cli.progress import say
from clusterlora.errors import ServiceDown


def deployments(module: str) -> ModuleType:
    """Return `deployments.<module>` from the checkout. Raises ServiceDown when only the wheel is installed."""
    try:
        return importlib.import_module(f"deployments.{module}")
    except ModuleNotFoundError as problem:
        if problem.name not in ("deployments", f"deployments.{module}"):
            raise
        raise ServiceDown(
            "servers and workers are started from the repository, and only the clusterlora wheel is installed here; "
            "clone the repository and run `make install` in it, or use train, evaluate and compare, which need no servers"
        ) from None


def use_running_stack(*, works: bool = False) -> None:
    """Point this process at the local stack's database and tracker when it runs; addresses already in the environment win.

    Args:
        works: the command needs the servers until it ends, so nobody who leaves meanwhile stops them.
    """
    try:
        stack = deployments("stack")
    except ServiceDown:
        return  # a bare wheel has no stack of its own
    home = stack.default_home()
    if works:
        context = click.get_current_context()
        running = stack.join(home, context.command_path)
        if running:
            context.call_on_close(lambda: stack.leave(home, log=say))
    else:
        running = stack.status(home)
    environment = running.environment() if running else {"CLUSTERLORA_HOME": str(deployments("services").results_home())}
    for address, prefix in (("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_"), ("PREFECT_API_URL", "PREFECT_API_")):
        # Somebody else's server is not told the passwords of this one.
        if os.environ.get(address, environment.get(address)) != environment.get(address):
            environment = {name: value for name, value in environment.items() if not name.startswith(prefix)}
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def stack_home() -> Path:
    """Return where the local stack keeps its state."""
    return deployments("stack").default_home()
