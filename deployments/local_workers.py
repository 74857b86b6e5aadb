"""The workers on this machine when there are to be others: none is stopped under a study, and Prefect counts none that was stopped."""

import urllib.error
from collections.abc import Callable, Iterable, Mapping, Sequence

from clusterlora.errors import ServiceDown
from deployments import prefect_rest, processes, service_specs
from deployments.processes import Process
from deployments.service_specs import ServiceSpec
from deployments.services_state import ServicesState
from deployments.supervise import may_live
from deployments.waiting_runs import latest_runs

_PREFIX = "worker-"


def unfinished_runs(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of runs that have not ended, also those that no command follows.

    Args:
        environment: has the server's address and login.

    Raises:
        ServiceDown: the server does not answer.
    """
    query = {"flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}}
    runs = list(latest_runs(query, environment, tries=3))
    return tuple(run["name"] for run in runs if run["deployment_id"] and may_live(run["infrastructure_pid"]))


def settled(
    state: ServicesState,
    specs_of: Callable[..., tuple[ServiceSpec, ...]],
    asked: int | None,
    other_users: Sequence[str],
    environment: Mapping[str, str],
    log: Callable[[str], None],
    *,
    known: Iterable[str],
) -> tuple[ServiceSpec, ...]:
    """Return the workers that there are to be. Where a number is asked for, others and those that change are stopped, if nothing uses them.

    Args:
        state: its processes are those that run.
        specs_of: returns the workers, given a number of them.
        environment: as of `unfinished_runs`.
        known: the services that ran before.

    Raises:
        ServiceDown: the server does not say whether a study uses them that nobody watches.
    """
    running = state.processes
    used_by = other_users
    if asked is not None and not used_by and any(map(_is_worker, running)):
        used_by = unfinished_runs(environment)
    if asked is None or may_change(specs_of(n_gpu_workers=asked), running, used_by, log):
        state.workers = asked or state.workers
    specs = specs_of(n_gpu_workers=state.workers)
    names = {spec.name for spec in specs}
    if asked is not None:
        stop_surplus([name for name in running if _is_worker(name) and name not in names], running, used_by, log)
    forget_stopped([name for name in known if name not in names and name not in running], environment)
    return specs


def may_change(specs: Sequence[ServiceSpec], running: dict[str, Process], used_by: Sequence[str], log: Callable[[str], None]) -> bool:
    """Stop workers that are to have other devices or threads than they have, if nothing uses them; return whether there may be others.

    Beside one that stays as it is, new ones would work on its devices, or all together on more cores than there are.
    """
    changed = [spec.name for spec in specs if spec.name in running and _differs(spec, running[spec.name])]
    if changed and used_by:
        log(f"the workers stay as they are for {', '.join(used_by)}")
        return False
    processes.stop([running.pop(name) for name in changed])
    return True


def _differs(spec: ServiceSpec, process: Process) -> bool:
    environment = processes.environment(process)
    names = (service_specs.DEVICES_VARIABLE, service_specs.THREADS_VARIABLE)
    return bool(environment) and any(environment.get(name) != spec.env.get(name) for name in names)


def stop_surplus(surplus: Sequence[str], running: dict[str, Process], used_by: Sequence[str], log: Callable[[str], None]) -> None:
    """Stop workers of which there are more than were asked for, if nothing uses them."""
    if used_by:
        for name in surplus:
            log(f"{name} stays up for {', '.join(used_by)}")
    else:
        processes.stop([running.pop(name) for name in surplus])


def forget_stopped(services: Iterable[str], environment: Mapping[str, str]) -> None:
    """Have Prefect forget workers that were stopped, given as services; it would count them as online for two minutes.

    Args:
        environment: as of `unfinished_runs`.
    """
    for worker in (service.removeprefix(_PREFIX) for service in services if _is_worker(service)):
        pool = worker.partition("-")[0]
        try:
            prefect_rest.request(f"work_pools/{pool}/workers/{worker}", method="DELETE", environment=environment, tries=2)
        except ServiceDown as problem:
            # One may never have told the server of itself; a server that does not answer is asked for no other.
            if not isinstance(problem.__cause__, urllib.error.HTTPError):
                return


def _is_worker(service: str) -> bool:
    return service.startswith(_PREFIX)
