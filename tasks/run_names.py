"""Tags of flow runs, by which a list of runs can be filtered by study and method."""

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run


def study_tag(study_name: str) -> str:
    """Return the tag that all runs of a study carry."""
    return f"study:{study_name}"


def method_tag(method: str) -> str:
    """Return the tag of the runs that train a method's adapters, or score its answers."""
    return f"method:{method}"


def tag_this_run(study_name: str) -> None:
    """Give the current flow run its study's tag; Prefect's `tags` reach only the runs it starts."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), tags=sorted({*flow_run.tags, study_tag(study_name)}))
