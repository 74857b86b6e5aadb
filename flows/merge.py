"""Merge the personal adapters of a study per cluster, in any of the ways there are."""

from prefect import flow, tags

from clusterlora.settings import MergeSettings
from tasks.merging import merge_clusters
from tasks.run_names import study_tag

AVERAGE = MergeSettings()


@flow(name="merge", flow_run_name="merge · {study_name} · {merging.kind}")
def merge(study_name: str, merging: MergeSettings = AVERAGE) -> tuple[str, ...]:
    """Return the names of the merged adapters, one per cluster; each is registered as a model of its own.

    Args:
        study_name: A study whose personal adapters are trained.
        merging: How they are merged.
    """
    with tags(study_tag(study_name)):
        return merge_clusters(study_name, merging)
