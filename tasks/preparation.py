"""Check the settings, read the data, record the study, group its personas, measure and regroup them. All of it may be repeated."""

import os

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from clusterlora.settings import Study
from clusterlora.wiring import from_environment
from tasks.pictures import embedded
from tasks.retrying import RETRIED
from tasks.run_log import PrefectRunLog, artifact_key


@task(task_run_name="prepare · {study.name}", cache_policy=NO_CACHE, **RETRIED)
def prepare(study: Study) -> None:
    """Refuse impossible settings and unusable data; else the study, its data and its parent run in MLflow exist.

    Raises:
        BadSettings, BadData: all problems at once.
    """
    from clusterlora.config import check
    from clusterlora.stages.prepare import prepare as prepare_study

    check(study)
    prepare_study(study, from_environment(), PrefectRunLog(study.name, "prepare"))


@task(task_run_name="cluster · {study.name}", cache_policy=NO_CACHE, **RETRIED)
def cluster(study: Study) -> None:
    """Group the personas of a study, unless that was done before."""
    from clusterlora.stages.cluster import cluster as cluster_study
    from clusterlora.stages.report import map_path

    stores = from_environment()
    clustering = cluster_study(study, stores, PrefectRunLog(study.name, "cluster"))
    sizes = f"Clusters of {', '.join(map(str, clustering.sizes))} personas by {clustering.algorithm}"
    quality = ", ".join(f"{name} {value:.2f}" for name, value in clustering.quality)
    picture = embedded(map_path(stores, study.name), "the personas on a plane, coloured by cluster")
    create_markdown_artifact(f"{sizes}: {quality}.\n\n{picture}\n", key=artifact_key("clusters", study.name), description=sizes)


@task(task_run_name="refine clusters · {study_name}", cache_policy=NO_CACHE, **RETRIED)
def refine(study_name: str) -> bool:
    """Move personas to the cluster that predicts them best, if a round of that is due; return whether one was."""
    from clusterlora.stages.refine import refine as refine_study

    return refine_study(study_name, from_environment(), PrefectRunLog(study_name, "refine"))


@task(task_run_name="signal in the data · {study_name}", cache_policy=NO_CACHE, **RETRIED)
def signal(study_name: str) -> None:
    """Tell how much there is to win for adapters per cluster and per person, without training any."""
    from clusterlora.signal.words import markdown, verdict
    from clusterlora.stages.signal import signal as measure_signal

    _step_aside()
    found = measure_signal(study_name, from_environment(), PrefectRunLog(study_name, "signal"))
    create_markdown_artifact(markdown(found), key=artifact_key("signal", study_name), description=verdict(found))


@task(task_run_name="scale of the scores · {study_name}", cache_policy=NO_CACHE, **RETRIED)
def scale(study_name: str) -> None:
    """Measure what somebody else's words would score, which the comparison will ask for."""
    from clusterlora.stages.scale import scale as measure_scale

    _step_aside()
    stores = from_environment()
    measure_scale(stores.studies.study(study_name), stores, stores.studies.dataset(study_name).ids)


def _step_aside() -> None:
    """Leave the cores to trainings, which others wait for: on Linux for this thread and those it starts, elsewhere for the process."""
    os.nice(10)
