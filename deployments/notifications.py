"""Who hears of a study: automations of the Prefect server that send a notification when something ends or moves."""

from collections.abc import Iterator
from uuid import UUID

from prefect.automations import AutomationCore
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound

from clusterlora.errors import UnknownName
from deployments.local_services import LocalServices
from deployments.prefect_client import connect
from tasks.events import CHAMPION_MOVED, DATA_LEFT, DRIFT, tell

BLOCK = "clusterlora"
"""Name of the webhook block that `notify_url` makes."""
_PREFIX = "clusterlora: tell when "
_OF_RUN = "{{ flow_run.name }} ended {{ flow_run.state.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}"
_OF_STUDY = "{{ event.resource.name }}: {{ event.payload.message }}"


def notifications(block_id: UUID) -> tuple[AutomationCore, ...]:
    """Return the automations that notify people through a notification block."""
    return (
        _of_runs(block_id, "a study finished", on="prefect.flow-run.Completed", deployment="study"),
        _of_runs(block_id, "a gate refused", on="prefect.flow-run.GateRefused"),
        _of_runs(block_id, "a study failed", on="prefect.flow-run.Failed", deployment="study"),
        _of_runs(block_id, "a run crashed", on="prefect.flow-run.Crashed"),
        _of_studies(block_id, "a champion moved", on=CHAMPION_MOVED),
        _of_studies(block_id, "dialogues drift", on=DRIFT),
        _of_studies(block_id, "a changed file is left", on=DATA_LEFT),
    )


def notify_url(services: LocalServices | None, url: str) -> tuple[str, ...]:
    """Send every notification as JSON (`subject`, `text`) to an address; return the automations' names. Idempotent."""
    with connect(services) as client:
        block = CustomWebhookNotificationBlock(
            name=BLOCK, url=url, json_data={"subject": "{{subject}}", "text": "{{body}}"}, headers=None, cookies=None
        )
        block.save(BLOCK, overwrite=True)
        return _replace(client, notifications(block_id(client, f"custom-webhook/{BLOCK}")))


def notify_block(services: LocalServices | None, name: str) -> tuple[str, ...]:
    """Send every notification through an existing block, such as `slack-webhook/team`. Raises UnknownName."""
    with connect(services) as client:
        return _replace(client, notifications(block_id(client, name)))


def notify_nobody(services: LocalServices | None) -> tuple[str, ...]:
    """Remove the automations that notify, and return their names; blocks stay."""
    with connect(services) as client:
        return tuple(_remove(client))


def block_id(client: SyncPrefectClient, name: str) -> UUID:
    """Return the id of a block by `<block type>/<name>`. Raises UnknownName."""
    block_type, _, block_name = name.partition("/")
    try:
        return client.read_block_document_by_name(block_name, block_type).id
    except ObjectNotFound:
        raise UnknownName(
            f"the Prefect server has no notification block {name!r}; create one in its UI under Blocks and name it as <block type>/<name>"
        ) from None


def tell_champion_moved(services: LocalServices | None, study: str, message: str) -> None:
    """Send the event of a champion that moved to the Prefect server, and wait until it is sent. Raises ServiceDown."""
    with connect(services):
        tell(CHAMPION_MOVED, study, message)
        EventsWorker.drain_all()


def _replace(client: SyncPrefectClient, automations: tuple[AutomationCore, ...]) -> tuple[str, ...]:
    tuple(_remove(client))
    for automation in automations:
        client.create_automation(automation)
    return tuple(automation.name for automation in automations)


def _remove(client: SyncPrefectClient) -> Iterator[str]:
    for automation in client.read_automations():
        if automation.name.startswith(_PREFIX):
            client.delete_automation(automation.id)
            yield automation.name


def _of_runs(block: UUID, what: str, *, on: str, deployment: str | None = None) -> AutomationCore:
    """Return the automation for runs that reach a state; with `deployment`, only for runs of it."""
    related: dict[str, str | list[str]] = (
        {"prefect.resource.role": ["deployment"], "prefect.resource.name": [deployment]} if deployment else {}
    )
    return _notification(block, what, _OF_RUN, on=on, resource="prefect.flow-run.*", related=related)


def _of_studies(block: UUID, what: str, *, on: str) -> AutomationCore:
    return _notification(block, what, _OF_STUDY, on=on, resource="clusterlora.study.*", related={})


def _notification(block: UUID, what: str, body: str, *, on: str, resource: str, related: dict[str, str | list[str]]) -> AutomationCore:
    return AutomationCore(
        name=f"{_PREFIX}{what}",
        description=f"Notifies people when {what}.",
        enabled=True,
        trigger=EventTrigger(
            expect={on},
            match=ResourceSpecification({"prefect.resource.id": [resource]}),
            match_related=ResourceSpecification(related),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[SendNotification(block_document_id=block, subject=f"clusterlora: {what}", body=body)],
    )
