"""Choose for new personas in this process, with the table where people look for it."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from clusterlora.wiring import from_environment
from tasks.device import exclusive, visible_gpu
from tasks.retrying import RETRIED
from tasks.run_log import PrefectRunLog, artifact_key


@task(
    task_run_name="assign new personas · {study_name}",
    **RETRIED,
    cache_policy=NO_CACHE,
)
def assign_personas(study_name: str, rows: Sequence[Mapping[str, Any]], path: str | None) -> list[dict[str, Any]]:
    """Return one record per new persona of the rows, or of the file or folder at the path.

    Raises:
        BadData: the dialogues cannot be used, or are given twice or not at all.
    """
    from clusterlora.stages.assign import assign, given, markdown, record

    stores = from_environment()
    log = PrefectRunLog(study_name, "assign")
    with given(rows, path) as data, exclusive(visible_gpu(), stores.home / ".locks"):
        assignments = assign(study_name, data, stores, log)
    create_markdown_artifact(
        markdown(study_name, assignments),
        key=artifact_key("assign", study_name),
        description=f"New personas of {study_name}: {len(assignments)}",
    )
    return [record(assignment) for assignment in assignments]
