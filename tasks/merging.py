"""Merge personal adapters per cluster in this process."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from clusterlora.settings import MergeSettings
from clusterlora.wiring import from_environment
from tasks.retrying import RETRIED
from tasks.run_log import PrefectRunLog


@task(task_run_name="merge · {study_name} · {merging.kind}", cache_policy=NO_CACHE, **RETRIED)
def merge_clusters(study_name: str, merging: MergeSettings) -> tuple[str, ...]:
    """Return the names of the merged adapters; those that exist already are not made again.

    Raises:
        BadData: personal adapters are missing.
    """
    from clusterlora.stages.merge import merge

    return merge(study_name, merging, from_environment(), PrefectRunLog(study_name, "merge", merging.kind))
