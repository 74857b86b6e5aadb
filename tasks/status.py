"""A study's state on one page: its settings, the progress of each phase, results so far, and what comes next."""

from collections.abc import Iterator
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from clusterlora.engine.memory import format_bytes
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.progress.timing import duration
from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task


@study_task("status · {study_name} · {doing}")
def show_status(context: TaskContext, study_name: str, doing: str) -> None:
    """Publish the study's state as a markdown artifact; the Artifacts page keeps one entry per study, with its history."""
    create_markdown_artifact(
        "\n".join(status_lines(read_state(study_name, context.stores), context.stores.folder(study_name), doing)),
        key=artifact_key("status", study_name),
        description=f"{study_name}: {doing}",
    )


def status_lines(state: StudyState, folder: Path, doing: str) -> Iterator[str]:
    """Yield the page line by line."""
    from clusterlora.clustering.summary import sentence
    from clusterlora.errors import counted
    from clusterlora.planning.cut import dialogues_each
    from clusterlora.planning.ladder import gated
    from clusterlora.progress.estimate import cut_sentence
    from clusterlora.progress.timeline import against_unified, next_step
    from clusterlora.results.tuning import tuning_markdown

    study, provenance, clustering = state.settings, state.provenance, state.clustering
    recipe = study.recipe
    yield f"# {study.name}: {doing}"
    yield ""
    n_personas, n_dialogues = (provenance.n_personas, provenance.n_dialogues) if provenance else ("?", "?")
    yield f"- **Data**: {n_personas} personas, {n_dialogues} dialogues from `{study.data.source}`"
    if state.data is not None:
        yield f"- **Examples**: {dialogues_each(state.data)} dialogues per persona"
    if left_out := cut_sentence(state):
        yield f"- **Left out**: {left_out}"
    if clustering is not None:
        yield f"- **Clusters**: {sentence(clustering)}"
    yield (
        f"- **{'Own recipe' if state.tuning else 'Recipe'}**: `{study.model.base}`, rank {recipe.rank}, {recipe.epochs} epochs, "
        f"batch {recipe.batch_size}, learning rate {recipe.learning_rate:g}"
    )
    yield f"- **Methods**: {', '.join(study.methods)}"
    outcomes = [f"{verdict.rung} {'passed' if verdict.passed else 'refused'}" for verdict in state.verdicts]
    yield f"- **Gate**: {', '.join(outcomes) or ('not judged yet' if gated(state) else 'none')}"
    yield f"- **Trained**: {counted(len(state.adapters), 'adapter')}"
    yield f"- **Results**: `{folder}`"
    if state.page:
        yield f"- **MLflow**: [the study's charts]({state.page})"
    yield ""
    yield from _timeline(state)
    if trials := tuning_markdown(state):
        yield "## Recipes"
        yield trials
    yield "## Scores so far"
    yield ""
    yield from (f"- {line}" for line in against_unified(state) or ("nothing is judged yet",))
    yield from (f"- decision on the gate: {decision}" for decision in state.decisions)
    yield ""
    yield f"**Next:** {next_step(state)}"
    yield from _failed_attempts(state)


def _timeline(state: StudyState) -> Iterator[str]:
    from clusterlora.progress.estimate import sentences
    from clusterlora.progress.timeline import phases

    def format_seconds(seconds: float | None) -> str:
        return "-" if seconds is None else duration(seconds)

    rows = [(p.name, p.state, format_seconds(p.spent), format_seconds(p.expected), p.detail) for p in phases(state)]
    yield "## Phases"
    yield ""
    yield "Took: seconds of work, over all workers. Still expected: until the phase is done, on the workers there are."
    yield ""
    yield from (f"- {sentence}" for sentence in sentences(state))
    yield ""
    yield markdown_table(("phase", "state", "took", "still expected", "detail"), rows, right=(False, False, True, True, False))


def _failed_attempts(state: StudyState) -> Iterator[str]:
    attempts = [attempt for attempt in state.attempts if attempt.state not in ("running", "done")]
    if attempts:
        rows = [
            (
                a.group,
                str(a.number),
                str(a.micro_batch),
                "-" if a.peak_memory_bytes is None else format_bytes(a.peak_memory_bytes),
                a.state,
                a.detail,
            )
            for a in attempts
        ]
        yield markdown_table(
            ("run", "attempt", "micro-batch", "peak memory", "ended", "why"), rows, right=(False, True, True, True, False, False)
        )
