"""Events of a study that no run's state tells: a champion that moved, dialogues that drift. Automations notify people of them."""

from prefect.events import emit_event

CHAMPION_MOVED = "clusterlora.champion.moved"
DRIFT = "clusterlora.drift"


def tell(event: str, study_name: str, message: str) -> None:
    """Send an event about a study to the Prefect server."""
    resource = {"prefect.resource.id": f"clusterlora.study.{study_name}", "prefect.resource.name": study_name}
    emit_event(event=event, resource=resource, payload={"message": message})
