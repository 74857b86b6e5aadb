"""Check the settings, read the data, record the study, group its personas, measure and regroup them. All of it may be repeated."""

import os

from prefect.artifacts import create_markdown_artifact

from clusterlora.settings import Study
from tasks.pictures import embedded
from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task


@study_task("prepare · {study.name}", progress="{study.name} prepare")
def prepare(context: TaskContext, study: Study) -> None:
    """Refuse impossible settings and unusable data; else the study, its data and its parent run in MLflow exist.

    Raises:
        BadSettings, BadData: all problems at once.
    """
    from clusterlora.config import check
    from clusterlora.stages.prepare import prepare as prepare_study

    check(study)
    prepare_study(study, context.stores, context.log)


@study_task("cluster · {study_name}", progress="{study_name} cluster")
def cluster(context: TaskContext, study_name: str) -> None:
    """Group the personas of a study, unless that was done before."""
    from clusterlora.results.report import map_path
    from clusterlora.stages.cluster import cluster as cluster_study

    stores = context.stores
    clustering = cluster_study(study_name, stores, context.log)
    sizes = f"Clusters of {', '.join(map(str, clustering.sizes))} personas by {clustering.algorithm}"
    quality = ", ".join(f"{name} {value:.2f}" for name, value in clustering.quality)
    picture = embedded(map_path(stores, study_name), "the personas on a plane, coloured by cluster")
    create_markdown_artifact(f"{sizes}: {quality}.\n\n{picture}\n", key=artifact_key("clusters", study_name), description=sizes)


@study_task("refine clusters · {study_name}", progress="{study_name} refine")
def refine(context: TaskContext, study_name: str) -> bool:
    """Move personas to the cluster that predicts them best, if a round of that is due; return whether one was."""
    from clusterlora.stages.refine import refine as refine_study

    return refine_study(study_name, context.stores, context.log)


@study_task("signal in the data · {study_name}", progress="{study_name} signal")
def signal(context: TaskContext, study_name: str) -> None:
    """Tell how much there is to win for adapters per cluster and per person, without training any."""
    from clusterlora.persona_signal.summary import markdown, verdict
    from clusterlora.stages.signal import signal as measure_signal

    _step_aside()
    found = measure_signal(study_name, context.stores, context.log)
    create_markdown_artifact(markdown(found), key=artifact_key("signal", study_name), description=verdict(found))


@study_task("scale of the scores · {study_name}")
def scale(context: TaskContext, study_name: str) -> None:
    """Measure what somebody else's words would score, which the comparison will ask for."""
    from clusterlora.planning.study_state import read_state
    from clusterlora.stages.scale import scale as measure_scale

    _step_aside()
    state = read_state(study_name, context.stores)
    measure_scale(state, context.stores, state.dataset.ids)


def _step_aside() -> None:
    """Leave the cores to trainings, which others wait for: on Linux for this thread and those it starts, elsewhere for the process."""
    os.nice(10)
