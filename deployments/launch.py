"""Launches a study on the local stack, follows it to its end, and says what came of it."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import httpx

from clusterlora.config import as_mapping
from clusterlora.errors import ServiceDown
from clusterlora.settings import Study
from clusterlora.stages.decision import decisions
from clusterlora.stages.plan import awaits_decision
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
        stay: leave servers that this call started up afterwards, until Ctrl-C; otherwise they are stopped. Servers that were up before
            stay up in any case.
        results: whether they are printed.

    Raises:
        ServiceDown: a server could not be started, or stopped answering.
    """
    stack = local_stack.up(home, workers=workers, log=say)
    ours = "prefect-server" in stack.started
    launched = False
    try:
        run_id = launch(study, stack)
        launched = True
        say(f"study {study.name}: {stack.addresses.prefect}/runs/flow-run/{run_id}")
        ended = follow(run_id, study.name, stack)
        for number in range(1, MOST_RELAUNCHES + 1):
            if ended.parent.state != "Crashed" or _was_stopped(stack):
                break
            say(f"the study's run crashed: {ended.parent.message}")
            say(f"it is launched again, {number} of {MOST_RELAUNCHES}, and goes on where it was")
            ended = follow(launch(study, stack), study.name, stack)
    except KeyboardInterrupt:
        if launched:
            say(f"\nThe study goes on without you. Watch it at {stack.addresses.prefect}, or run the same command again to follow it;")
            say("`clusterlora study status` tells how it stands, `clusterlora down` stops everything.")
        elif ours:
            local_stack.down(home)
        raise
    except BaseException:
        if ours:
            local_stack.down(home)
        raise
    if results and not ended.waiting:
        report(study.name, ended, stack)
    if ours and stay:
        _stay(stack, say)
    if ours:
        local_stack.down(home)
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
        client.resume_flow_run(run_id, run_input=_recorded(study_name))
        return True


def _resume_if_decided(client: "SyncPrefectClient", run_id: UUID, study_name: str) -> None:
    """Resume a study that waits for a decision which came while its server was down."""
    stores = from_environment()
    state = client.read_flow_run(run_id).state
    settled = bool(decisions(study_name, stores)) and not awaits_decision(stores.studies.study(study_name), stores)
    if settled and state is not None and state.is_paused():
        client.resume_flow_run(run_id, run_input=_recorded(study_name))


def _recorded(study_name: str) -> dict[str, object]:
    """Return the last decision as the form's values. The study acts on the record; the form only has to be filled in."""
    last = decisions(study_name, from_environment())[-1]
    changes = asdict(last.rung) if last.rung else {}
    fields = {name: changes.get(name) for name in ("learning_rate", "epochs", "init")}
    return {"choice": last.choice, "decided_by": last.by, **fields}


def follow(run_id: UUID, study_name: str, stack: Stack) -> Snapshot:
    """Show the study's runs and their progress until it ends (it may have ended already); return the last picture of it.

    Without a terminal nobody may be there to decide on a refused gate, so it returns when the study waits for that.

    Raises:
        ServiceDown: the Prefect server is gone.
    """
    with connect(stack) as client, LiveView() if sys.stderr.isatty() else PlainView() as view:
        supervised, told = time.monotonic(), False
        while True:
            try:
                if time.monotonic() - supervised > SUPERVISE_SECONDS:
                    supervise(client, stack, view)
                    supervised = time.monotonic()
                picture = snapshot(client, run_id, study_name)
            except httpx.TransportError as lost:
                _check_server(stack, lost)
            else:
                view.show(picture)
                if picture.ended:
                    return picture
                if picture.waiting and not told:
                    told = True
                    view.say(f"the gate refused and waits for your decision: clusterlora study decide {study_name} --go-on (or --stop)")
                    if not sys.stdout.isatty():
                        return picture
            time.sleep(WATCH_SECONDS)


def supervise(client: "SyncPrefectClient", stack: Stack, view: LiveView | PlainView) -> None:
    """Start again what died of the stack, and mark runs Crashed whose process is gone, so that they are tried again."""
    died = local_stack.died(stack.home)
    if died:
        view.say(f"{', '.join(died)} died and is started again")
        local_stack.up(stack.home, workers=stack.workers, log=view.say)
    for name in crash_dead_runs(client):
        view.say(f"{name}: its process is gone")


def _check_server(stack: Stack, lost: Exception) -> None:
    """Raise ServiceDown when the server was stopped on purpose; one that died is started again by `supervise`."""
    if _was_stopped(stack):
        raise ServiceDown(
            f"the Prefect server at {stack.addresses.prefect} was stopped ({lost}); start the same command again: nothing finished is lost"
        ) from lost


def _was_stopped(stack: Stack) -> bool:
    """Return whether the server was stopped on purpose; one that died is still in the books."""
    # First this, which waits for a `down` that is under way: it stops the workers, whose runs crash, before the server.
    died = local_stack.died(stack.home)
    running = local_stack.status(stack.home)
    return (running is None or "prefect-server" not in running.running) and "prefect-server" not in died


def _stay(stack: Stack, say: Callable[[str], None]) -> None:
    say("\nThe servers stay up for you to look around; Ctrl-C (or `clusterlora down`) stops them.")
    try:
        while local_stack.status(stack.home) is not None:
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        say("\nstopping servers and workers")
