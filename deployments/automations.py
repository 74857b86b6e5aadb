"""Automations of the Prefect server: mark runs whose process died as Crashed, relaunch crashed studies; notifications.py notifies people.

The study that waits for a crashed training or evaluation retries it.
"""

from datetime import timedelta

from prefect.automations import AutomationCore
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from deployments.notifications import block_id, notifications
from deployments.run import HEARTBEAT_SECONDS

SILENCE = timedelta(seconds=4 * HEARTBEAT_SECONDS)
"""How long a run may go without a heartbeat. With fewer than three intervals, a busy machine would crash living runs."""

START = timedelta(minutes=10)
"""How long a run that a worker has taken may need to start, including pulling an image."""


def crash_silent_runs(within: timedelta = SILENCE) -> AutomationCore:
    """Return the automation for a running run whose heartbeats stop.

    A worker reports the death of its run's process. If the worker died as well, nobody does, and the run would stay Running.
    """
    return _crash_without_events(
        "clusterlora: running without a heartbeat",
        after={"prefect.flow-run.heartbeat"},
        within=within,
        message="no heartbeat: the run's process and its worker died",
    )


def crash_unstarted_runs(within: timedelta = START) -> AutomationCore:
    """Return the automation for a run that a worker took but never started because it died; no other worker takes it."""
    return _crash_without_events(
        "clusterlora: taken by a worker and never started",
        after={"prefect.flow-run.Pending", "prefect.flow-run.Submitting"},
        within=within,
        message="not started: the worker that took the run died",
    )


def relaunch_crashed_studies() -> AutomationCore:
    """Return the automation for a study whose own run crashed: a new run with the same parameters, which continues the study.

    A run that the automation launched is not relaunched: a study that crashes every time would be launched forever.
    """
    parameters = "{{ flow_run.parameters | tojson if flow_run.created_by.type != 'AUTOMATION' else 1 // 0 }}"
    same_parameters = {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": parameters}}
    return AutomationCore(
        name="clusterlora: a study's run crashed",
        description="A study whose own run crashed is launched again, once.",
        enabled=True,
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification({"prefect.resource.role": ["deployment"], "prefect.resource.name": ["study"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[RunDeployment(source="inferred", deployment_id=None, parameters=same_parameters, job_variables=None)],
    )


def apply_automations(notify_by: str | None = None) -> tuple[str, ...]:
    """Create or update the project's automations on the server at PREFECT_API_URL; return their names. Idempotent.

    Args:
        notify_by: notification block, such as `slack-webhook/team`; None sends no notifications.

    Raises:
        UnknownName: the server has no such block.
    """
    automations = (crash_silent_runs(), crash_unstarted_runs(), relaunch_crashed_studies())
    with get_client(sync_client=True) as client:
        if notify_by is not None:
            automations += notifications(block_id(client, notify_by))
        for automation in automations:
            existing = client.read_automations_by_name(automation.name)
            # A replaced automation loses the runs it watches, so one that is up to date stays.
            if [(rule.trigger, rule.actions, rule.enabled) for rule in existing] == [(automation.trigger, automation.actions, True)]:
                continue
            for rule in existing:
                client.delete_automation(rule.id)
            client.create_automation(automation)
    return tuple(automation.name for automation in automations)


def _crash_without_events(name: str, *, after: set[str], within: timedelta, message: str) -> AutomationCore:
    crash: ActionTypes = ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=message, force=False)
    return AutomationCore(
        name=name,
        description=f"Marks a run Crashed after {within.total_seconds():.0f} s without an event of it ({message}).",
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
