"""The environment of the local services: one shell started them, and what is started or asked later from another one works with theirs."""

import os
from collections.abc import Mapping

from clusterlora.errors import BadSettings
from deployments import processes, service_specs
from deployments.processes import Process
from deployments.service_specs import DATABASE_VARIABLE, HOME_VARIABLE

_TOLD_BY = ("worker-cpu", "prefect-server", "mlflow-server")
"""Those that have the number of threads and the devices of the shell, not numbers of their own."""


def of_services(running: Mapping[str, Process]) -> Mapping[str, str] | None:
    """Return the environment of the shell that started these services; None where none runs, or the system does not tell.

    Where a worker that replaces a dead one had another, its runs would not be forked (fork_server.py), work on other devices, or write to
    another database.
    """
    for name in (*(name for name in _TOLD_BY if name in running), *running):
        environment = processes.environment(running[name])
        # Every service has it; a process may have written its title over the others.
        if HOME_VARIABLE in environment:
            return service_specs.without_own(environment, keeps_devices=name in _TOLD_BY)
    return None


def of_client(running: Mapping[str, Process]) -> Mapping[str, str]:
    """Return the environment of this process with the folder and database of the running services, where it names neither."""
    services = None if _names_results() else of_services(running)
    if services is None:
        return os.environ
    return {**os.environ, **{name: services[name] for name in (HOME_VARIABLE, DATABASE_VARIABLE) if name in services}}


def refuse_other_results(running: Mapping[str, Process]) -> None:
    """Check that this command reads what the running services write.

    Raises:
        BadSettings: its environment names another folder or another database.
    """
    services = of_services(running) if _names_results() else None
    if services is None:
        return
    (folder, database), (of_theirs, database_of_theirs) = (service_specs.results_of(one) for one in (os.environ, services))
    mend = "stop them (clusterlora down), or give this shell servers of its own (CLUSTERLORA_STACK_HOME)"
    if folder != of_theirs:
        raise BadSettings(f"the servers' workers keep their results in {of_theirs}, and {HOME_VARIABLE} is {folder}: unset it, {mend}")
    if database != database_of_theirs:
        # An address may hold a password.
        raise BadSettings(
            f"the servers' workers write to another database than this shell's {DATABASE_VARIABLE} says: set it as it was where they were "
            f"started, {mend}"
        )


def _names_results() -> bool:
    return any(os.environ.get(name) for name in (HOME_VARIABLE, DATABASE_VARIABLE))
