"""A study's state on one page: what it is, what the gate said, what is trained and what went wrong on the way."""

from collections.abc import Iterator

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from clusterlora.ports import Stores
from clusterlora.settings import Study
from clusterlora.wiring import from_environment
from tasks.run_log import artifact_key


@task(task_run_name="status · {study_name} · {doing}", cache_policy=NO_CACHE)
def show_status(study_name: str, doing: str) -> None:
    """Publish the study's state as a markdown artifact; the Artifacts page keeps one entry per study, with its history."""
    stores = from_environment()
    create_markdown_artifact(
        "\n".join(status_lines(stores.studies.study(study_name), stores, doing)),
        key=artifact_key("status", study_name),
        description=f"{study_name}: {doing}",
    )


def status_lines(study: Study, stores: Stores, doing: str) -> Iterator[str]:
    """Yield the page line by line."""
    facts = stores.studies.facts(study.name)
    clustering = stores.studies.clustering(study.name)
    verdicts = stores.studies.verdicts(study.name)
    attempts = stores.studies.attempts(study.name)
    recipe = study.recipe
    yield f"# {study.name}: {doing}"
    yield ""
    yield f"- **Data**: {facts.get('n_personas', '?')} personas, {facts.get('n_dialogues', '?')} dialogues from `{study.data.source}`"
    if clustering is not None:
        yield f"- **Clusters**: {', '.join(map(str, clustering.sizes))} personas, by {clustering.algorithm}"
    yield (
        f"- **Recipe**: `{study.model.base}`, rank {recipe.rank}, {recipe.epochs} epochs, "
        f"batch {recipe.batch_size}, learning rate {recipe.learning_rate:g}"
    )
    yield f"- **Methods**: {', '.join(study.methods)}"
    said = [f"{verdict.rung} {'passed' if verdict.passed else 'refused'}" for verdict in verdicts]
    yield f"- **Gate**: {', '.join(said) or 'not judged yet'}"
    yield f"- **Trained**: {len(stores.studies.adapters(study.name))} adapters"
    yield f"- **Results**: `{stores.folder(study.name)}`"
    troubled = [attempt for attempt in attempts if attempt.state not in ("running", "done")]
    if troubled:
        yield ""
        yield "| run | attempt | micro-batch | ended | why |"
        yield "| --- | ---: | ---: | --- | --- |"
        for attempt in troubled:
            detail = attempt.detail.replace("|", "\\|").replace("\n", " ")
            yield f"| {attempt.pack} | {attempt.number} | {attempt.micro_batch} | {attempt.state} | {detail} |"
