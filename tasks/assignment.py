"""Assign new personas in this process, and publish the table as an artifact."""

from typing import Any

from prefect.artifacts import create_markdown_artifact

from clusterlora.requests import AssignmentRequest
from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task


@study_task("assign new personas · {request.study_name}", progress="{request.study_name} assign", on_gpu=True)
def assign_personas(context: TaskContext, request: AssignmentRequest) -> list[dict[str, Any]]:
    """Return one record per new persona of the rows, or of the file or folder at the path.

    Raises:
        BadData: the dialogues are unusable, or not exactly one of rows and path is set.
    """
    from clusterlora.stages.assign import assign, data_from, markdown, record

    study_name = request.study_name
    with data_from(request.rows, request.path) as data:
        assignments = assign(study_name, data, context.stores, context.log)
    create_markdown_artifact(
        markdown(study_name, assignments),
        key=artifact_key("assign", study_name),
        description=f"New personas of {study_name}: {len(assignments)}",
    )
    return [record(assignment) for assignment in assignments]
