"""What the Prefect server does on its own: a run whose process is gone becomes Crashed, so that whoever waits can try again."""

from datetime import timedelta

from prefect.automations import AutomationCore
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

HEARTBEAT_SECONDS = 30
"""What PREFECT_FLOWS_HEARTBEAT_FREQUENCY must be wherever runs execute (deployments/pools says so too)."""

SILENCE = timedelta(seconds=4 * HEARTBEAT_SECONDS)
"""How long a running run may be silent. With fewer than three heartbeats a busy machine crashes living runs."""

START = timedelta(minutes=10)
"""How long a run that a worker has taken may need to start; pulling an image is part of it."""


def crash_silent_runs(within: timedelta = SILENCE) -> AutomationCore:
    """Return the rule for a running run whose heartbeats stop without a state that says why.

    A worker reports the death of its run's process. When the worker died as well nobody does, and the run would stay Running.
    """
    return _crash_unless_heard_of(
        "clusterlora: running without a heartbeat",
        after={"prefect.flow-run.heartbeat"},
        within=within,
        message="no heartbeat: the run's process and its worker are gone",
    )


def crash_unstarted_runs(within: timedelta = START) -> AutomationCore:
    """Return the rule for a run that a worker took and never started, because the worker died in between: nobody takes it again."""
    return _crash_unless_heard_of(
        "clusterlora: taken by a worker and never started",
        after={"prefect.flow-run.Pending", "prefect.flow-run.Submitting"},
        within=within,
        message="not started: the worker that took the run is gone",
    )


def apply_automations() -> tuple[str, ...]:
    """Create or correct the project's automations on the server at PREFECT_API_URL; return their names. Safe to repeat."""
    wanted = (crash_silent_runs(), crash_unstarted_runs())
    with get_client(sync_client=True) as client:
        for automation in wanted:
            found = client.read_automations_by_name(automation.name)
            # Replacing a rule makes it forget which runs it watches, so one that is right stays.
            if [(rule.trigger, rule.actions, rule.enabled) for rule in found] == [(automation.trigger, automation.actions, True)]:
                continue
            for rule in found:
                client.delete_automation(rule.id)
            client.create_automation(automation)
    return tuple(automation.name for automation in wanted)


def _crash_unless_heard_of(name: str, *, after: set[str], within: timedelta, message: str) -> AutomationCore:
    crash: ActionTypes = ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=message, force=False)
    return AutomationCore(
        name=name,
        description=f"A run is marked Crashed after {within.total_seconds():.0f} s in which nothing is heard of it ({message}).",
        enabled=True,
        trigger=EventTrigger(
            after=after,
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[crash],
    )
