"""Compare the methods of a study, publish the table as an artifact, and register the study's models."""

from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact

from tasks.artifacts import embedded_image
from tasks.events import CHAMPION_MOVED, tell
from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task

if TYPE_CHECKING:
    from clusterlora.ports.stores import Stores


@study_task("compare · {study_name}", progress="{study_name} compare")
def publish_comparison(context: TaskContext, study_name: str) -> str:
    """Write the study's results folder and return the sentence that sums the comparison up."""
    from clusterlora.stages.compare import compare_study

    comparison = compare_study(study_name, context.stores, context.log)
    publish_summary(study_name, context.stores, comparison.sentence)
    return comparison.sentence


def publish_summary(study_name: str, stores: "Stores", sentence: str) -> None:
    """Show the study's summary and figure as an artifact of this run."""
    from clusterlora.metadata import ImportedScores
    from clusterlora.results.imported_scores import imported_markdown
    from clusterlora.stages.compare import figure_path

    imported = imported_markdown(stores.studies.metadata(study_name, ImportedScores))
    summary = (stores.folder(study_name) / "results" / "summary.md").read_text(encoding="utf-8")
    figure = embedded_image(figure_path(stores, study_name), "comparison of the methods")
    create_markdown_artifact(
        f"# {study_name}\n\n{figure}\n\n{summary}\n{imported}",
        key=artifact_key("comparison", study_name),
        description=sentence,
    )


@study_task("register · {study_name}", progress="{study_name} register")
def register(context: TaskContext, study_name: str) -> str:
    """Put the adapters and the champion into the model registry; return the champion's URI, or why none is registered."""
    from clusterlora.metadata import RegisteredChampion
    from clusterlora.planning.study_state import read_state
    from clusterlora.stages.register import register_models

    before = context.stores.studies.metadata(study_name, RegisteredChampion)
    uri = register_models(study_name, context.stores, context.log)
    state = read_state(study_name, context.stores)
    outcome = state.outcome
    if state.moved is not None and state.moved.elsewhere is not None and outcome is not None:
        publish_summary(study_name, context.stores, outcome.sentence)
        return f"registered without the alias: {state.moved.elsewhere}"
    if uri is not None and (before is None or before.uri != uri):
        tell(CHAMPION_MOVED, study_name, f"{uri} answers{f', instead of {before.uri}' if before else ''}")
    if outcome is not None and outcome.champion is None:
        return "as before" if state.moved is not None else "none"
    root = state.settings.refresh.root or study_name
    if uri is None and (other := context.stores.tracker.champion(root)) is not None:
        return f"registered without the alias, which stays with {other[1]} of study {other[0]}"
    return uri or "not registered, since nothing is tracked"
