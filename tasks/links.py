"""From a study's run in Prefect to its run in MLflow, and back."""

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL

from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task


@study_task("link · {study_name}")
def link_runs(context: TaskContext, study_name: str) -> None:
    """Show the study's MLflow run as an artifact of this run, and keep this run's address as a tag there."""
    stores = context.stores
    page = stores.tracker.page(study_name)
    if page is None:
        get_run_logger().info("nothing is tracked: MLFLOW_TRACKING_URI is not set")
        return
    create_link_artifact(
        page, link_text=f"{study_name} in MLflow", key=artifact_key("mlflow", study_name), description="The study's run in MLflow"
    )
    parent = flow_run.root_flow_run_id or flow_run.id
    stores.tracker.link(study_name, "prefect_run", f"{PREFECT_UI_URL.value()}/runs/flow-run/{parent}")
