"""Launches a study on the local stack, follows it to its end, and says what came of it."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import httpx

from clusterlora.config import as_mapping
from clusterlora.errors import ServiceDown
from clusterlora.metadata import Decision
from clusterlora.planning.ladder import awaits_decision
from clusterlora.planning.study_state import read_state
from clusterlora.settings import Study
from clusterlora.wiring import from_environment
from deployments import stack as local_stack
from deployments.observe import Snapshot, connect, latest_open_run, parent_name, snapshot
from deployments.report import report
from deployments.stack import Stack
from deployments.supervise import crash_dead_runs
from deployments.view import LiveView, PlainView

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

WATCH_SECONDS = 4.0
SUPERVISE_SECONDS = 10.0
MOST_RELAUNCHES = 2
"""How often a study is launched again when its own process died."""


def run_study(
    study: Study,
    *,
    home: Path,
    workers: int | None,
    stay: bool,
    say: Callable[[str], None],
    results: bool = True,
) -> Snapshot:
    """Start what is missing of the stack, run the study on it, print its results, and return how its run ended.

    Interrupted by Ctrl-C, the study goes on without its spectator.

    Args:
        home: where the stack keeps its state.
        workers: processes of the gpu pool, see `stack.up`.
        stay: need the servers afterwards, too, until Ctrl-C. They are stopped when nobody needs them any more, unless somebody asked for
            servers that stay.
        results: whether they are printed.

    Raises:
        ServiceDown: a server could not be started, or stopped answering.
    """
    stack = local_stack.up(home, workers=workers, user=f"study {study.name}", log=say)
    launched = False
    try:
        if sys.stderr.isatty():
            say(f"log in   {stack.login_link()}   (in your browser, once; another link comes from: clusterlora up)")
        run_id = launch(study, stack)
        launched = True
        say(f"study {study.name}: {stack.addresses.prefect}/runs/flow-run/{run_id}")
        ended = follow(run_id, study.name, stack)
        for number in range(1, MOST_RELAUNCHES + 1):
            if ended.parent.state != "Crashed" or local_stack.was_stopped(home):
                break
            say(f"the study's run crashed: {ended.parent.message}")
            say(f"it is launched again, {number} of {MOST_RELAUNCHES}, and goes on where it was")
            stack = local_stack.status(home) or stack
            ended = follow(launch(study, stack), study.name, stack)
        stack = local_stack.status(home) or stack
        if results and not ended.waiting:
            report(study.name, ended, stack)
        if stay and not local_stack.is_kept(home):
            _stay(stack, study.name, say)
    except KeyboardInterrupt:
        if launched:
            say(f"\nThe study goes on without you. Watch it at {stack.addresses.prefect}, or run the same command again to follow it;")
            say("`clusterlora study status` tells how it stands, `clusterlora down` stops everything.")
        local_stack.leave(home, keep=launched, log=say)
        raise
    except BaseException:
        local_stack.leave(home, log=say)
        raise
    local_stack.leave(home, log=say)
    return ended


def launch(study: Study, stack: Stack) -> UUID:
    """Return the id of the study's run: the one under way if its process lives, else a fresh one."""
    with connect(stack) as client:
        crash_dead_runs(client)
        under_way = latest_open_run(client, study.name)
        if under_way is not None:
            _resume_if_decided(client, under_way, study.name)
            return under_way
        deployment = client.read_deployment_by_name("study/study")
        run = client.create_flow_run_from_deployment(
            deployment.id, name=parent_name(study.name), parameters={"config": as_mapping(study)}, tags=[f"study:{study.name}"]
        )
        return run.id


def decide(study_name: str, stack: Stack) -> bool:
    """Resume the study's run after a decision on its gate was recorded; return whether one was waiting for it."""
    with connect(stack) as client:
        run_id = latest_open_run(client, study_name)
        state = client.read_flow_run(run_id).state if run_id else None
        if run_id is None or state is None or not state.is_paused():
            return False
        client.resume_flow_run(run_id, run_input=_recorded(read_state(study_name, from_environment()).decisions[-1]))
        return True


def _resume_if_decided(client: "SyncPrefectClient", run_id: UUID, study_name: str) -> None:
    """Resume a study that waits for a decision which came while its server was down."""
    state = client.read_flow_run(run_id).state
    if state is None or not state.is_paused():
        return  # nobody may have written the study down yet
    held = read_state(study_name, from_environment())
    if held.decisions and not awaits_decision(held):
        client.resume_flow_run(run_id, run_input=_recorded(held.decisions[-1]))


def _recorded(last: Decision) -> dict[str, object]:
    """Return a decision as the form's values. The study acts on the record; the form only has to be filled in."""
    changes = asdict(last.rung) if last.rung else {}
    fields = {name: changes.get(name) for name in ("learning_rate", "epochs", "init")}
    return {"choice": last.choice, "decided_by": last.by, **fields}


def follow(run_id: UUID, study_name: str, stack: Stack) -> Snapshot:
    """Show the study's runs and their progress until it ends (it may have ended already); return the last picture of it.

    Without a terminal nobody may be there to decide on a refused gate, so it returns when the study waits for that.

    Raises:
        ServiceDown: the servers were stopped, or one that died does not start again.
    """
    with LiveView() if sys.stderr.isatty() else PlainView() as view:
        while True:
            # A server that came back where its port was taken meanwhile is at another address.
            with connect(stack) as client, impatient():
                found = _follow_at(client, run_id, study_name, stack, view)
            if isinstance(found, Snapshot):
                return found
            stack = found


def _follow_at(client: "SyncPrefectClient", run_id: UUID, study_name: str, stack: Stack, view: LiveView | PlainView) -> Snapshot | Stack:
    """Return the last picture of a study, or the stack as soon as it is elsewhere."""
    supervised, told, silent = time.monotonic(), False, False
    while (now := bring_back(stack, study_name, view.say)).addresses == stack.addresses:
        try:
            if time.monotonic() - supervised > SUPERVISE_SECONDS:
                for name in crash_dead_runs(client):
                    view.say(f"{name}: its process is gone")
                supervised = time.monotonic()
            picture = snapshot(client, run_id, study_name)
        except httpx.HTTPError as lost:
            _raise_unless_passing(lost)
            if not silent:
                view.say(f"the Prefect server does not answer ({lost or type(lost).__name__}); it is asked again")
            silent = True
        else:
            silent = False
            view.show(picture)
            if picture.ended:
                return picture
            if picture.waiting and not told:
                told = True
                view.say(f"the gate refused and waits for your decision: clusterlora study decide {study_name} --go-on (or --stop)")
                if not sys.stdout.isatty():
                    return picture
        time.sleep(WATCH_SECONDS)
    return now


@contextmanager
def impatient() -> Generator[None]:
    """Let this process's clients of Prefect say at once that a server is lost: whoever looks again anyway need not wait minutes."""
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield


def bring_back(stack: Stack, study_name: str, say: Callable[[str], None]) -> Stack:
    """Start again what died of the stack; return it as it runs now.

    Raises:
        ServiceDown: it was stopped on purpose.
    """
    if local_stack.was_stopped(stack.home):
        raise ServiceDown(
            f"the servers at {stack.addresses.prefect} were stopped (clusterlora down); nothing that finished is lost. "
            f"Go on with: clusterlora study run --name {study_name}"
        )
    died = local_stack.died(stack.home)
    if not died:
        # Somebody else may have started it again, at other addresses.
        now = local_stack.status(stack.home) or stack
        return stack if now.addresses == stack.addresses else replace(now, workers=stack.workers)
    say(f"{', '.join(died)} died and is started again")
    return local_stack.up(stack.home, workers=stack.workers, user=f"study {study_name}", log=say)


def _raise_unless_passing(lost: httpx.HTTPError) -> None:
    """Raise what asking again does not help against. On SQLite the server answers 503 while another run writes."""
    if isinstance(lost, httpx.HTTPStatusError) and lost.response.status_code < 500 and lost.response.status_code != 429:
        raise lost


def _stay(stack: Stack, study_name: str, say: Callable[[str], None]) -> None:
    say(f"\nlog in   {stack.login_link()}   (in your browser, once; another link comes from: clusterlora up)")
    say("The servers stay up for you to look around; Ctrl-C (or `clusterlora down`) stops them.")
    try:
        while not local_stack.is_kept(stack.home):
            stack = bring_back(stack, study_name, say)
            time.sleep(WATCH_SECONDS)
    except ServiceDown:
        say("\nthe servers were stopped")
    except KeyboardInterrupt:
        say("")
