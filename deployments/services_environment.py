"""The environment of the local services: one shell started them, and what is started or asked later from another one works with theirs.

Folder and database of the results, `results_of` an environment, are in the services' state until they are stopped: a command of another
shell that reads them, or starts the services again, goes on with these, also after all of them died (`of_client`).
"""

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
            return _without_mlflows(service_specs.without_own(name, environment, keeps_devices=name in _TOLD_BY))
    return None


def of_client(results: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment of this process with the results of the services, unless it names another folder or database.

    Args:
        results: where services write, or wrote until all of them died; none where there are none.
    """
    own = _without_mlflows(os.environ)
    return {**own, **results} if named_results().items() <= results.items() else own


def _without_mlflows(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Return an environment without what MLflow adds to that of every process that imports it, and more to that of its server."""
    return {name: value for name, value in environment.items() if not name.startswith("_MLFLOW")}


def refuse_other_results(results: Mapping[str, str]) -> None:
    """Check that this command reads what the services write.

    Raises:
        BadSettings: its environment names another folder or another database.
    """
    named = named_results()
    mend = "stop them (clusterlora down), or give this shell servers of its own (CLUSTERLORA_STACK_HOME)"
    folder, theirs = named.get(HOME_VARIABLE), results.get(HOME_VARIABLE)
    if folder and theirs and folder != theirs:
        raise BadSettings(f"the servers' workers keep their results in {theirs}, and {HOME_VARIABLE} is {folder}: unset it, {mend}")
    database, theirs = named.get(DATABASE_VARIABLE), results.get(DATABASE_VARIABLE)
    if database and theirs and database != theirs:
        # An address may hold a password.
        raise BadSettings(f"the servers' workers write to another database than this shell's {DATABASE_VARIABLE} says: unset it, {mend}")


def named_results() -> Mapping[str, str]:
    """Return the folder and the database that this process's environment names, each where it does."""
    return {name: value for name, value in service_specs.results_of(os.environ).items() if os.environ.get(name)}


def adopted(results: Mapping[str, str]) -> str | None:
    """Return that results are where this shell alone would not look for them, as a line; None where it would."""
    own = service_specs.results_of(os.environ)
    if results == own:
        return None
    names = [name for name in results if results[name] != own[name] and not os.environ.get(name)]
    return (
        f"results are in {results[HOME_VARIABLE]}, as in the shell that started the servers; once these are stopped, "
        f"set {' and '.join(names)} as there"
    )
