"""Events of a study that no run's state tells: its champion moved, dialogues drift, a watched file has news. Automations act on them."""

from prefect.events import emit_event

CHAMPION_MOVED = "clusterlora.champion.moved"
DRIFT = "clusterlora.drift"
DATA_CHANGED = "clusterlora.data.changed"
"""A watched file has news for a study's next refresh; the automation of the deployment `refresh` runs that."""
DATA_LEFT = "clusterlora.data.left"
"""A watched file still has news after a refresh was asked for several times; a person has to look."""


def tell(event: str, study_name: str, message: str, **payload: str) -> None:
    """Send an event about a study to the Prefect server; automations read the payload."""
    resource = {"prefect.resource.id": f"clusterlora.study.{study_name}", "prefect.resource.name": study_name}
    emit_event(event=event, resource=resource, payload={"message": message, "study_name": study_name, **payload})
