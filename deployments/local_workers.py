"""The workers on this machine when there are to be others: none is stopped under a study, and Prefect counts none that was stopped."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from clusterlora.errors import ServiceDown
from deployments import prefect_rest, processes, service_specs
from deployments.processes import Process
from deployments.service_specs import ServiceSpec
from deployments.supervise import is_flow_process
from deployments.waiting_runs import latest_runs


def unfinished_runs(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of runs that have not ended, also those that no command follows; none if the server does not answer.

    Args:
        environment: has the server's address and login.
    """
    query = {"flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}}
    try:
        runs = list(latest_runs(query, environment, tries=3))
    except ServiceDown:
        return ()
    return tuple(run["name"] for run in runs if run["deployment_id"] and _is_live(run["infrastructure_pid"]))


def _is_live(pid: str | None) -> bool:
    return pid is None or is_flow_process(int(pid))


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
    with suppress(ServiceDown):
        for worker in (service.removeprefix("worker-") for service in services if service.startswith("worker-")):
            pool = worker.partition("-")[0]
            prefect_rest.request(f"work_pools/{pool}/workers/{worker}", method="DELETE", environment=environment, tries=1)
