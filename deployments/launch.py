"""Launches a study on the local services, follows it to its end, and prints its results."""

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import httpx

from clusterlora.config import as_mapping
from clusterlora.errors import BadSettings, ServiceDown, UnknownName
from clusterlora.metadata import Decision
from clusterlora.planning.ladder import awaits_decision
from clusterlora.planning.study_state import read_state
from clusterlora.settings import Study
from clusterlora.wiring import from_environment
from deployments import local_services
from deployments.expectation import Expectation
from deployments.local_services import LocalServices
from deployments.prefect_client import StudySnapshot, connect, latest_open_run, parent_name, snapshot
from deployments.prefect_status import local_studies
from deployments.study_results import print_results, stores_without_tracker
from deployments.supervise import crash_dead_runs
from deployments.terminal_view import LiveView, PlainView
from deployments.waiting_runs import Note, PoolProblem, pool_problems, study_runs, why_waiting

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

WATCH_SECONDS = 4.0
SUPERVISE_SECONDS = 10.0
CANCEL_SECONDS = 60.0
"""How long a command waits for the workers to end what belongs to a cancelled study."""
MOST_RELAUNCHES = 2
"""How often a study is launched again after its own process died."""


def run_study(
    study: Study,
    *,
    home: Path,
    workers: int | None,
    stay: bool,
    log: Callable[[str], None],
    results: bool = True,
) -> StudySnapshot:
    """Start the services that do not run, run the study, print its results, and return its final state.

    After Ctrl-C the study runs on without this command.

    Args:
        home: folder of the services' state.
        workers: worker processes of the gpu pool, see `local_services.up`.
        stay: keep the servers up after the study, until Ctrl-C. They are stopped when nobody uses them, unless somebody started them to
            stay up.
        log: receives one line per step.
        results: whether to print the results.

    Raises:
        ServiceDown: a server could not be started, or stopped answering.
    """
    services = local_services.up(home, workers=workers, user=f"study {study.name}", log=log)
    launched = False
    try:
        if sys.stderr.isatty():
            log(_login_line(services))
        for note in _notes(study.name, services):
            log(f"study {study.name}: {note.what}")
        run_id = launch(study, services)
        launched = True
        log(f"study {study.name}: {services.addresses.prefect}/runs/flow-run/{run_id}")
        ended = follow(run_id, study.name, services)
        for number in range(1, MOST_RELAUNCHES + 1):
            if ended.parent.state != "Crashed" or local_services.was_stopped(home):
                break
            log(f"the study's run crashed: {ended.parent.message}")
            log(f"launching it again, {number} of {MOST_RELAUNCHES}; it continues where it stopped")
            services = local_services.status(home) or services
            ended = follow(launch(study, services), study.name, services)
        services = local_services.status(home) or services
        if ended.parent.state == "Cancelled":
            _await_cancelled(study.name, services)
        if results and not ended.waiting:
            print_results(study.name, ended, services)
        if stay and not local_services.stays_up(home):
            _stay_up(services, study.name, log)
    except KeyboardInterrupt:
        if launched:
            log(f"\nThe study runs on. Watch it at {services.addresses.prefect}, or run the same command again to follow it;")
            log("`clusterlora study status` prints its state, `clusterlora down` stops everything.")
        local_services.release(home, keep=launched, log=log)
        raise
    except BaseException:
        local_services.release(home, log=log)
        raise
    local_services.release(home, log=log)
    return ended


def _await_cancelled(study_name: str, services: LocalServices) -> None:
    """Wait until the workers have ended the runs of a cancelled study, for which the servers would stay up."""
    deadline = time.monotonic() + CANCEL_SECONDS
    with suppress(ServiceDown):
        while study_runs(study_name, services.environment(), states=("CANCELLING",)) and time.monotonic() < deadline:
            time.sleep(WATCH_SECONDS)


def _notes(study_name: str, services: LocalServices) -> tuple[Note, ...]:
    """Return what Prefect says of a study that was begun before."""
    try:
        recorded = stores_without_tracker(services).studies.status(study_name)
    except UnknownName:
        return ()
    return local_studies({study_name: recorded}, services)[study_name].notes


def run_studies(
    studies: Sequence[Study], *, home: Path, workers: int | None, user: str, log: Callable[[str], None]
) -> tuple[StudySnapshot, ...]:
    """Run studies one after another on services that stay up for all of them; return the final state of each, up to one that failed.

    Args:
        home, workers, log: as `run_study`.
        user: what the services are used for.

    Raises:
        ServiceDown: as `run_study`.
    """
    local_services.up(home, workers=workers, user=user, log=log)
    ended: list[StudySnapshot] = []
    try:
        for number, study in enumerate(studies, start=1):
            log(f"study {study.name}, {number} of {len(studies)}")
            services = local_services.status(home) or local_services.up(home, workers=workers, user=user, log=log)
            ended.append(follow(launch(study, services), study.name, services))
            if not ended[-1].completed:
                break
    finally:
        local_services.release(home, log=log)
    return tuple(ended)


def launch(study: Study, services: LocalServices) -> UUID:
    """Return the id of the study's run: the unfinished one if its process is alive, else a new one."""
    with connect(services) as client:
        crash_dead_runs(client)
        open_run = latest_open_run(client, study.name)
        if open_run is not None:
            _resume_if_decided(client, open_run, study.name)
            return open_run
        deployment = client.read_deployment_by_name("study/study")
        run = client.create_flow_run_from_deployment(
            deployment.id, name=parent_name(study.name), parameters={"config": as_mapping(study)}, tags=[f"study:{study.name}"]
        )
        return run.id


def refuse_unknown_pool(pool: str, *, home: Path) -> None:
    """Check that a study can train in a pool: the services of this machine have a deployment to it, or will have once they are started.

    Raises:
        BadSettings: they have not.
        ServiceDown: the Prefect server runs and does not answer.
    """
    if pool == "gpu":
        return
    from prefect.exceptions import ObjectNotFound

    from deployments.apply import POOLS, pool_type

    if (services := local_services.status(home)) is None:
        # Those of containers are left out on a machine of one's own.
        is_known = pool_type(pool) == "process" and pool.startswith("gpu") and any(file.stem == pool for file in POOLS.glob("*.json"))
        fix = "set runtime.gpu_pool=gpu, or run `clusterlora up` first if it was added to Prefect by hand"
    else:
        fix = "set runtime.gpu_pool=gpu, or add the pool and its deployments to Prefect"
        try:
            with connect(services) as client:
                client.read_deployment_by_name(f"train/train-{pool}")
            is_known = True
        except ObjectNotFound:
            is_known = False
    if not is_known:
        raise BadSettings(f"runtime.gpu_pool = {pool!r}: this machine's Prefect has no deployment that trains in that pool; {fix}")


def problems_of_local_pools(services: LocalServices) -> tuple[PoolProblem, ...]:
    """Return what keeps the pools that have workers on this machine from starting runs. Raises ServiceDown."""
    return pool_problems(("cpu", "gpu"), services.environment())


def resume_after_decision(study_name: str, services: LocalServices) -> bool:
    """Resume the study's run after a decision on its gate was recorded; return whether a run was waiting for it."""
    with connect(services) as client:
        run_id = latest_open_run(client, study_name)
        state = client.read_flow_run(run_id).state if run_id else None
        if run_id is None or state is None or not state.is_paused():
            return False
        client.resume_flow_run(run_id, run_input=_form_values(read_state(study_name, from_environment()).decisions[-1]))
        return True


def _resume_if_decided(client: "SyncPrefectClient", run_id: UUID, study_name: str) -> None:
    """Resume a paused study whose decision was recorded while the server was down."""
    run_state = client.read_flow_run(run_id).state
    if run_state is None or not run_state.is_paused():
        return  # the study may not be in the database yet
    state = read_state(study_name, from_environment())
    if state.decisions and not awaits_decision(state):
        client.resume_flow_run(run_id, run_input=_form_values(state.decisions[-1]))


def _form_values(decision: Decision) -> dict[str, object]:
    """Return a decision as values of the form. The study reads the record; Prefect only requires the form to be filled in."""
    changes = asdict(decision.rung) if decision.rung else {}
    fields = {name: changes.get(name) for name in ("learning_rate", "epochs", "init")}
    return {"choice": decision.choice, "decided_by": decision.by, **fields}


def follow(run_id: UUID, study_name: str, services: LocalServices) -> StudySnapshot:
    """Show the study's runs and their progress until it ends; return the last snapshot.

    Without a terminal there may be nobody to decide on a refused gate, so it also returns when the study waits for a decision.

    Raises:
        ServiceDown: the servers were stopped, or one that died does not start again.
    """
    with LiveView() if sys.stderr.isatty() else PlainView() as view:
        while True:
            # A restarted server has another address if its port was taken meanwhile.
            with connect(services) as client, no_client_retries():
                result = _follow_at(client, run_id, study_name, services, view)
            if isinstance(result, StudySnapshot):
                return result
            services = result


def _follow_at(
    client: "SyncPrefectClient", run_id: UUID, study_name: str, services: LocalServices, view: LiveView | PlainView
) -> StudySnapshot | LocalServices:
    """Return the last snapshot of a study, or the services as soon as their addresses have changed."""
    from prefect.exceptions import ObjectNotFound

    supervised_at, told_to_decide, unreachable = time.monotonic(), False, False
    reasons: tuple[Note, ...] = ()
    expectation = Expectation(study_name, services)
    while (current := restart_dead_processes(services, study_name, view.print_line)).addresses == services.addresses:
        try:
            if time.monotonic() - supervised_at > SUPERVISE_SECONDS:
                for name in crash_dead_runs(client):
                    view.print_line(f"{name}: its process died")
                before = reasons
                # A server that does not answer is told below.
                with suppress(ServiceDown):
                    reasons = why_waiting(study_name, services.environment())
                for reason in reasons:
                    if reason not in before:
                        view.print_line(str(reason))
                supervised_at = time.monotonic()
            study = snapshot(client, run_id, study_name)
        except ObjectNotFound as error:
            raise ServiceDown(
                f"the run of study {study_name} was deleted in Prefect; what it finished is kept. "
                f"Continue with: clusterlora study run --name {study_name}"
            ) from error
        except httpx.HTTPError as error:
            _raise_unless_transient(error)
            if not unreachable:
                view.print_line(f"the Prefect server does not answer ({error or type(error).__name__}); trying again")
            unreachable = True
        else:
            unreachable = False
            view.show(study)
            for line in expectation.due_lines():
                view.print_line(line)
            if study.ended:
                return study
            if study.waiting and not told_to_decide:
                told_to_decide = True
                view.print_line(f"the gate refused and waits for your decision: clusterlora study decide {study_name} --go-on (or --stop)")
                if not sys.stdout.isatty():
                    return study
        time.sleep(WATCH_SECONDS)
    return current


@contextmanager
def no_client_retries() -> Generator[None]:
    """Turn off the retries of Prefect clients in this process: a caller that polls need not wait minutes for a dead server."""
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield


def restart_dead_processes(services: LocalServices, study_name: str, log: Callable[[str], None]) -> LocalServices:
    """Restart processes of the services that died; return the services as they run.

    Raises:
        ServiceDown: the services were stopped on purpose.
    """
    if local_services.was_stopped(services.home):
        raise ServiceDown(
            f"the servers at {services.addresses.prefect} were stopped (clusterlora down); nothing that finished is lost. "
            f"Continue with: clusterlora study run --name {study_name}"
        )
    dead = local_services.dead_processes(services.home)
    if not dead:
        # Another process may have restarted them, at other addresses.
        current = local_services.status(services.home) or services
        return services if current.addresses == services.addresses else current
    log(f"{', '.join(dead)} died; restarting")
    return local_services.up(services.home, user=f"study {study_name}", log=log)


def _raise_unless_transient(error: httpx.HTTPError) -> None:
    """Raise an error that a retry cannot help. On SQLite the server returns 503 while another run writes."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500 and error.response.status_code != 429:
        raise error


def _stay_up(services: LocalServices, study_name: str, log: Callable[[str], None]) -> None:
    log(f"\n{_login_line(services)}")
    log("The servers stay up; Ctrl-C (or `clusterlora down`) stops them.")
    try:
        while not local_services.stays_up(services.home):
            services = restart_dead_processes(services, study_name, log)
            time.sleep(WATCH_SECONDS)
    except ServiceDown:
        log("\nthe servers were stopped")
    except KeyboardInterrupt:
        log("")


def _login_line(services: LocalServices) -> str:
    return f"log in   {services.login_link()}   (in your browser, once; for another link: clusterlora up)"
