"""What the Prefect server does on its own: a run whose process is gone becomes Crashed, and people are told.

A training or an evaluation is then tried again by the study that waits for it; a study that crashed itself is launched again.
"""

from datetime import timedelta
from uuid import UUID

from prefect.automations import AutomationCore
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from clusterlora.errors import UnknownName
from deployments.run import HEARTBEAT_SECONDS

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


def relaunch_crashed_studies() -> AutomationCore:
    """Return the rule for a study whose own run crashed: a fresh run with the same parameters, which goes on where the study was.

    Only once: what a rule launched is not launched again by it, for what crashes every time would never end.
    """
    parameters = "{{ flow_run.parameters | tojson if flow_run.created_by.type != 'AUTOMATION' else 1 // 0 }}"
    same = {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": parameters}}
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
        actions=[RunDeployment(source="inferred", deployment_id=None, parameters=same, job_variables=None)],
    )


def notify(block_id: UUID) -> tuple[AutomationCore, ...]:
    """Return the rules that tell people, through a notification block, of a gate that refused and of a run that crashed."""
    return (
        _tell(block_id, "a gate refused", on="prefect.flow-run.GateRefused"),
        _tell(block_id, "a run crashed", on="prefect.flow-run.Crashed"),
    )


def apply_automations(notify_by: str | None = None) -> tuple[str, ...]:
    """Create or correct the project's automations on the server at PREFECT_API_URL; return their names. Safe to repeat.

    Args:
        notify_by: notification block by which people are told, as `slack-webhook/team`; None leaves it out.

    Raises:
        UnknownName: the server has no such block.
    """
    wanted = (crash_silent_runs(), crash_unstarted_runs(), relaunch_crashed_studies())
    with get_client(sync_client=True) as client:
        if notify_by is not None:
            wanted += notify(_block(client, notify_by))
        for automation in wanted:
            found = client.read_automations_by_name(automation.name)
            # Replacing a rule makes it forget which runs it watches, so one that is right stays.
            if [(rule.trigger, rule.actions, rule.enabled) for rule in found] == [(automation.trigger, automation.actions, True)]:
                continue
            for rule in found:
                client.delete_automation(rule.id)
            client.create_automation(automation)
    return tuple(automation.name for automation in wanted)


def _block(client: SyncPrefectClient, name: str) -> UUID:
    kind, _, own = name.partition("/")
    try:
        return client.read_block_document_by_name(own, kind).id
    except ObjectNotFound:
        raise UnknownName(
            f"the Prefect server has no notification block {name!r}; make one in its UI under Blocks, and write <block type>/<name>"
        ) from None


def _tell(block_id: UUID, what: str, *, on: str) -> AutomationCore:
    body = "{{ flow_run.name }} ended {{ flow_run.state.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}"
    return AutomationCore(
        name=f"clusterlora: tell when {what}",
        description=f"People are told when {what}.",
        enabled=True,
        trigger=EventTrigger(
            expect={on},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[SendNotification(block_document_id=block_id, subject=f"clusterlora: {what}", body=body)],
    )


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
