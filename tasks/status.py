"""A study's state on one page: what runs, on what, how far each phase is, what is known so far, and what comes next."""

from collections.abc import Iterator

from prefect.artifacts import create_markdown_artifact

from clusterlora.evaluation.markdown import table
from clusterlora.metadata import Provenance, TrackerPage
from clusterlora.models.memory import format_bytes
from clusterlora.ports import Stores
from clusterlora.settings import Study
from tasks.run_log import artifact_key, duration
from tasks.study_task import TaskContext, study_task


@study_task("status · {study_name} · {doing}")
def show_status(context: TaskContext, study_name: str, doing: str) -> None:
    """Publish the study's state as a markdown artifact; the Artifacts page keeps one entry per study, with its history."""
    stores = context.stores
    create_markdown_artifact(
        "\n".join(status_lines(stores.studies.study(study_name), stores, doing)),
        key=artifact_key("status", study_name),
        description=f"{study_name}: {doing}",
    )


def status_lines(study: Study, stores: Stores, doing: str) -> Iterator[str]:
    """Yield the page line by line."""
    from clusterlora.planning.decisions import decisions
    from clusterlora.stages.outlook import against_unified, next_step

    made_with = stores.studies.metadata(study.name, Provenance)
    page = stores.studies.metadata(study.name, TrackerPage)
    clustering = stores.studies.clustering(study.name)
    recipe = study.recipe
    yield f"# {study.name}: {doing}"
    yield ""
    n_personas, n_dialogues = (made_with.n_personas, made_with.n_dialogues) if made_with else ("?", "?")
    yield f"- **Data**: {n_personas} personas, {n_dialogues} dialogues from `{study.data.source}`"
    yield f"- **Examples**: {study.data.train} train, {study.data.val} val and {study.data.test} test dialogues per persona"
    if clustering is not None:
        yield f"- **Clusters**: {', '.join(map(str, clustering.sizes))} personas, by {clustering.algorithm}"
    yield (
        f"- **Recipe**: `{study.model.base}`, rank {recipe.rank}, {recipe.epochs} epochs, "
        f"batch {recipe.batch_size}, learning rate {recipe.learning_rate:g}"
    )
    yield f"- **Methods**: {', '.join(study.methods)}"
    said = [f"{verdict.rung} {'passed' if verdict.passed else 'refused'}" for verdict in stores.studies.verdicts(study.name)]
    yield f"- **Gate**: {', '.join(said) or 'not judged yet'}"
    yield f"- **Trained**: {len(stores.studies.adapters(study.name))} adapters"
    yield f"- **Results**: `{stores.folder(study.name)}`"
    if page and page.address:
        yield f"- **MLflow**: [the study's run]({page.address})"
    yield ""
    yield from _timeline(study, stores)
    yield "## Against unified so far"
    yield ""
    yield from (f"- {line}" for line in against_unified(study, stores) or ("nothing is judged yet",))
    yield from (f"- a person said: {one}" for one in decisions(study.name, stores))
    yield ""
    yield f"**Next:** {next_step(study, stores)}"
    yield from _troubles(stores, study.name)


def _timeline(study: Study, stores: Stores) -> Iterator[str]:
    from clusterlora.stages.outlook import phases

    def shown(seconds: float | None) -> str:
        return "-" if seconds is None else duration(seconds)

    rows = [(p.name, p.state, shown(p.spent), shown(p.expected), p.detail) for p in phases(study, stores)]
    yield "## Phases"
    yield ""
    yield "Seconds of work, over all workers; expectations come from the pace so far."
    yield ""
    yield table(("phase", "state", "took", "still expected", "detail"), rows, right=(False, False, True, True, False))


def _troubles(stores: Stores, study_name: str) -> Iterator[str]:
    attempts = [attempt for attempt in stores.studies.attempts(study_name) if attempt.state not in ("running", "done")]
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
        yield table(("run", "attempt", "micro-batch", "peak memory", "ended", "why"), rows, right=(False, True, True, True, False, False))
