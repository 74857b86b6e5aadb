"""Artifacts beyond a task's own table: images inside Markdown, and the link between a study's runs in Prefect and MLflow."""

import base64
from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL

from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task

_MAX_IMAGE_BYTES = 700_000
"""Artifacts should stay below a megabyte, and base64 adds a third."""


def embedded_image(image: Path, title: str) -> str:
    """Return a PNG as a Markdown image that contains its data, or its path when it is too large for an artifact.

    Prefect stores only the text of an artifact, and its page cannot load an image from elsewhere.
    """
    data = image.read_bytes()
    if len(data) > _MAX_IMAGE_BYTES:
        return f"{title}: `{image}`"
    return f"![{title}](data:image/png;base64,{base64.b64encode(data).decode()})"


@study_task("link · {study_name}")
def link_runs(context: TaskContext, study_name: str) -> None:
    """Link the study's MLflow run in an artifact of this run, and set this run's address as a tag of the MLflow run."""
    stores = context.stores
    page = stores.tracker.page(study_name)
    if page is None:
        get_run_logger().info("nothing is tracked: MLFLOW_TRACKING_URI is not set")
        return
    create_link_artifact(
        page,
        link_text=f"{study_name} in MLflow",
        key=artifact_key("mlflow", study_name),
        description="The study's runs and charts in MLflow",
    )
    parent = flow_run.root_flow_run_id or flow_run.id
    stores.tracker.link(study_name, "prefect_run", f"{PREFECT_UI_URL.value()}/runs/flow-run/{parent}")
