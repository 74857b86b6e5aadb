"""What studies with permuted labels claim, as an artifact."""

from prefect.artifacts import create_markdown_artifact

from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task


@study_task("null rate · {study_name}")
def publish_null_rate(context: TaskContext, study_name: str, null_names: tuple[str, ...]) -> str:
    """Return in a sentence how often these studies claim personalisation; the table is in the study's folder and an artifact."""
    from clusterlora.results.null_rate import rate_of, write_null_rate

    rate = rate_of(null_names, context.stores)
    write_null_rate(study_name, rate, context.stores)
    create_markdown_artifact(rate.markdown(), key=artifact_key("null", study_name), description=rate.sentence)
    return rate.sentence
