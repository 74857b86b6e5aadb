"""Choose the adapters of a study that answer people who are new to it."""

from typing import Any

from prefect import flow, tags

from clusterlora.requests import AssignmentRequest
from tasks.assignment import assign_personas
from tasks.run_names import study_tag


@flow(name="assign", flow_run_name="assign · {request.study_name}")
def assign(request: AssignmentRequest) -> list[dict[str, Any]]:
    """Return for every new persona whether unified or a cluster should answer, with the margin and the adapter's folder.

    Nothing is trained and nothing is stored; the table is an artifact of this run. A persona needs at least two dialogues to be
    assigned to a cluster.

    Args:
        request: The study, and the dialogues of the new personas.
    """
    with tags(study_tag(request.study_name)):
        return assign_personas(request)
