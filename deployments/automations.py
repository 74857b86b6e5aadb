"""What the Prefect server does on its own: a run whose process is gone becomes Crashed, so that it is retried."""

from datetime import timedelta

from prefect.automations import AutomationCore
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

HEARTBEAT_SECONDS = 30
"""What PREFECT_FLOWS_HEARTBEAT_FREQUENCY must be wherever runs execute (deployments/pools says so too)."""

PATIENCE = 4
"""Missed heartbeats before a run counts as dead. With fewer than three a busy machine crashes living runs."""


def zombies_crash() -> AutomationCore:
    """Return the rule that marks a run Crashed when its heartbeats stop and no state change says why.

    A worker reports the death of its run's process. When the worker dies as well nobody does, and the run would stay Running.
    """
    silence = PATIENCE * HEARTBEAT_SECONDS
    crash: ActionTypes = ChangeFlowRunState(
        name="Crashed",
        state=StateType.CRASHED,
        message=f"no heartbeat for {silence} s: the process and its worker are gone",
        force=False,
    )
    return AutomationCore(
        name="clusterlora: runs without a heartbeat crash",
        description="A run whose process and worker are both gone would stay Running for ever.",
        enabled=True,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence),
        ),
        actions=[crash],
    )


def apply_automations() -> tuple[str, ...]:
    """Create or correct the project's automations on the server at PREFECT_API_URL; return their names. Safe to repeat."""
    wanted = (zombies_crash(),)
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
