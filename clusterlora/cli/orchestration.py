"""The one place that imports `deployments` (servers, workers, launching), which is in the checkout but not in the wheel.

It is imported when called, so the core does not depend on Prefect.
"""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from clusterlora.cli.progress import echo_stderr
from clusterlora.errors import ServiceDown


def deployments(module: str) -> ModuleType:
    """Return the module `deployments.<module>` of the checkout. Raises ServiceDown if only the wheel is installed."""
    try:
        return importlib.import_module(f"deployments.{module}")
    except ModuleNotFoundError as problem:
        if problem.name not in ("deployments", f"deployments.{module}"):
            raise
        raise ServiceDown(
            "servers and workers are started from the repository, and only the clusterlora wheel is installed here; "
            "clone the repository and run `make install` in it, or use train, evaluate and compare, which need no servers"
        ) from None


def use_local_services(*, keep_up: bool = False) -> None:
    """Set the addresses of the local services in this process's environment if they run, and where the results are, also if they all died;
    variables that are set keep their values.

    Args:
        keep_up: register the command as a user until it ends, so that no other command stops the services meanwhile.
    """
    try:
        local_services = deployments("local_services")
    except ServiceDown:
        return  # an installed wheel has no local services
    home = local_services.default_home()
    running = None
    try:
        if keep_up:
            context = click.get_current_context()
            running = local_services.acquire(home, context.command_path)
            if running:
                context.call_on_close(lambda: local_services.release(home, log=echo_stderr))
        else:
            running = local_services.status(home)
    except ServiceDown as problem:
        _tell_once(str(problem))
    results = results_here()
    environment = running.environment() if running else results
    for address, prefix in (("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_"), ("PREFECT_API_URL", "PREFECT_API_")):
        # The local passwords are not sent to another server.
        if os.environ.get(address, environment.get(address)) != environment.get(address):
            environment = {name: value for name, value in environment.items() if not name.startswith(prefix)}
    for name, value in environment.items():
        # Folder and database that are set to nothing are as if they were not; an address that is names no server.
        if name not in os.environ or (name.startswith("CLUSTERLORA_") and not os.environ[name]):
            os.environ[name] = value


def results_here() -> Mapping[str, str]:
    """Return folder and database of the results, as variables: where `clusterlora up` in this shell would have them written.

    Those of the services count, be they running or dead, unless this shell names others; that they do is told, as a line.
    """
    local_services = deployments("local_services")
    try:
        results = local_services.results_of_client(services_home())
    except ServiceDown as problem:
        # Results and database can be read without servers.
        _tell_once(str(problem))
        results = local_services.results_of_client(services_home(), is_damaged=True)
        _tell_once(f"results are looked for in {results['CLUSTERLORA_HOME']}; CLUSTERLORA_HOME names another folder")
        return results
    if line := deployments("services_environment").adopted(results):
        _tell_once(line)
    return results


def in_prefect(recorded: Mapping[str, str]) -> dict[str, Any]:
    """Return what the local Prefect server says of studies, as `deployments.prefect_status.StudyInPrefect`; nothing while it is away.

    Args:
        recorded: the status in the database by study.
    """
    try:
        services = deployments("local_services").status(services_home())
        return deployments("prefect_status").local_studies(recorded, services) if services is not None and recorded else {}
    except ServiceDown as problem:
        _tell_once(str(problem))
        return {}


def _tell_once(line: str) -> None:
    """Print what there is to say of the local services, which a command may look for several times, once in a command."""
    context = click.get_current_context(silent=True)
    told: set[str] = context.meta.setdefault("clusterlora.told", set()) if context is not None else set()
    if line not in told:
        told.add(line)
        echo_stderr(line)


def tell_champion_moved(study: str, message: str) -> None:
    """Tell a Prefect server that a champion moved, so that people hear of it; nothing without one, and a line where it fails."""
    try:
        services = deployments("local_services").status(services_home())
        if services is not None or os.environ.get("PREFECT_API_URL"):
            deployments("notifications").tell_champion_moved(services, study, message)
    except ServiceDown as problem:
        echo_stderr(f"nobody is told that the champion moved: {problem}")


def services_home() -> Path:
    """Return the folder of the local services' state."""
    return deployments("local_services").default_home()
