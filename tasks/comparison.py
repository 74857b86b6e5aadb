"""Compare the methods of a study and register what it made, with the table where people look for it."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from clusterlora.wiring import from_environment
from tasks.pictures import embedded
from tasks.retrying import RETRIED
from tasks.run_log import PrefectRunLog, artifact_key


@task(task_run_name="compare · {study_name}", cache_policy=NO_CACHE, **RETRIED)
def compare(study_name: str) -> str:
    """Write the study's results folder and return the sentence that sums the comparison up."""
    from clusterlora.metadata import ImportedScores
    from clusterlora.stages.compare import compare as compare_study
    from clusterlora.stages.compare import figure_path
    from clusterlora.stages.imported_scores import imported_markdown

    stores = from_environment()
    comparison = compare_study(study_name, stores, PrefectRunLog(study_name, "compare"))
    beside = imported_markdown(stores.studies.metadata(study_name, ImportedScores))
    summary = (stores.folder(study_name) / "results" / "summary.md").read_text(encoding="utf-8")
    create_markdown_artifact(
        f"# {study_name}\n\n{embedded(figure_path(stores, study_name), 'comparison of the methods')}\n\n{summary}\n{beside}",
        key=artifact_key("comparison", study_name),
        description=comparison.sentence,
    )
    return comparison.sentence


@task(task_run_name="register · {study_name}", cache_policy=NO_CACHE, **RETRIED)
def register(study_name: str) -> str:
    """Put the adapters and the champion into the model registry; return the champion's URI."""
    from clusterlora.stages.register import register as register_models

    return register_models(study_name, from_environment(), PrefectRunLog(study_name, "register"))
