"""The steps before and around training: prepare the study, cluster its personas, refine the clusters, measure the data. All idempotent."""

import os

from prefect.artifacts import create_markdown_artifact

from clusterlora.settings import Study
from clusterlora.wiring import forget_what_can_be_read_again
from tasks.artifacts import embedded_image
from tasks.events import DRIFT, tell
from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task


@study_task("prepare · {study.name}", progress="{study.name} prepare")
def prepare(context: TaskContext, study: Study) -> None:
    """Check settings and data, then record the study with its data, open its parent run in MLflow, and show what is learnt.

    Raises:
        BadSettings, BadData: all problems at once.
    """
    from clusterlora.config import check
    from clusterlora.data.preview import markdown, previews
    from clusterlora.models.base import base_folder
    from clusterlora.models.loading import load_tokenizer
    from clusterlora.stages.prepare import prepare_study

    check(study)
    dataset = prepare_study(study, context.stores, context.log)
    recorded = context.stores.studies.study(study.name)
    shown = previews(recorded, dataset.personas, load_tokenizer(base_folder(recorded.model.base)))
    create_markdown_artifact(markdown(shown), key=artifact_key("preview", study.name), description="dialogues as the base model reads them")


@study_task("cluster · {study_name}", progress="{study_name} cluster")
def cluster(context: TaskContext, study_name: str) -> None:
    """Cluster the personas of a study, unless that was done before, and tell which thresholds of its gate are out of reach of the data."""
    from clusterlora.clustering.summary import sentence
    from clusterlora.gate.judged_cluster import words
    from clusterlora.metadata import Regrouping
    from clusterlora.planning.ladder import GATED
    from clusterlora.results.refresh import drift_sentence
    from clusterlora.results.report import map_path
    from clusterlora.stages.cluster import cluster_study
    from clusterlora.stages.judge import measure_ceiling

    stores = context.stores
    clustering = cluster_study(study_name, stores, context.log)
    study, lines = stores.studies.study(study_name), [sentence(clustering)]
    if GATED in study.methods:
        lines.append(words(clustering.sizes, study.clustering))
    if ceiling := measure_ceiling(study_name, stores):
        for sentence_of_threshold in ceiling.out_of_reach(study.gate).values():
            context.log.note(f"warning: {sentence_of_threshold}")
            lines.append(f"**{sentence_of_threshold}**")
    regrouping = stores.studies.metadata(study_name, Regrouping)
    if regrouping is not None and regrouping.anew:
        tell(DRIFT, study_name, drift_sentence(regrouping))
    image = embedded_image(map_path(stores, study_name), "the personas on a plane, coloured by cluster")
    create_markdown_artifact("\n\n".join([*lines, image]) + "\n", key=artifact_key("clusters", study_name), description=lines[0])


@study_task("refine clusters · {study_name}", progress="{study_name} refine")
def refine(context: TaskContext, study_name: str) -> bool:
    """Run a round of cluster refinement if one is due; return whether it was."""
    from clusterlora.stages.refine import refine_clusters

    return refine_clusters(study_name, context.stores, context.log)


@study_task("signal in the data · {study_name}", progress="{study_name} signal")
def measure_persona_signal(context: TaskContext, study_name: str) -> None:
    """Measure how much adapters per cluster and per person could gain, without training any."""
    from clusterlora.persona_signal.summary import markdown, verdict
    from clusterlora.stages.persona_signal import signal_of_study

    _lower_priority()
    persona_signal = signal_of_study(study_name, context.stores, context.log)
    create_markdown_artifact(markdown(persona_signal), key=artifact_key("signal", study_name), description=verdict(persona_signal))


@study_task("scale of the scores · {study_name}")
def measure_scale(context: TaskContext, study_name: str) -> None:
    """Measure the scores of other people's references, which the comparison needs."""
    from clusterlora.planning.study_state import read_state
    from clusterlora.stages.scale import scale

    _lower_priority()
    state = read_state(study_name, context.stores)
    scale(state, context.stores, state.dataset.ids)
    del state
    # Both have run beside trainings, and the study's process waits for these.
    forget_what_can_be_read_again()


def _lower_priority() -> None:
    """Yield the cores to trainings: on Linux for this thread and the threads it starts, elsewhere for the process.

    It keeps a third of a training's share: with less, others who use the machine, too, would starve what the comparison waits for.
    """
    os.nice(5)
