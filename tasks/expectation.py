"""How long a study will take: probed once on a worker, told in the run's log and as an artifact before anything is trained."""

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task


@study_task("probed? · {study_name}")
def lacks_probe(context: TaskContext, study_name: str) -> bool:
    """Return whether nothing is known yet of how long the study's work takes."""
    from clusterlora.planning.study_state import read_state

    return read_state(study_name, context.stores).probe is None


@study_task("how long · {study_name}")
def show_expectation(context: TaskContext, study_name: str) -> None:
    """Record how many workers there are, cut the study to its minutes, and publish how long it will take and what would be cheaper."""
    from clusterlora.progress.estimate import sentences
    from clusterlora.stages.probe import ready

    n_workers = max(1, _n_workers(context.stores.studies.study(study_name).runtime.gpu_pool))
    lines = sentences(ready(study_name, n_workers, context.stores, context.log))
    for line in lines:
        get_run_logger().info("%s", line)
    if lines:
        text = "\n".join(f"- {line}" for line in lines)
        create_markdown_artifact(text, key=artifact_key("expected", study_name), description=f"{study_name}: {lines[0]}")


def _n_workers(pool: str) -> int:
    """Return how many workers of a pool are online; 0 where the pool does not exist."""
    with get_client(sync_client=True) as client:
        try:
            return sum(worker.status == "ONLINE" for worker in client.read_workers_for_work_pool(pool))
        except ObjectNotFound:
            return 0
