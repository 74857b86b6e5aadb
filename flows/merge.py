"""Merge the personal adapters of a study per cluster, by any of the merge algorithms."""

from prefect import flow, tags

from clusterlora.requests import MergeRequest
from tasks.merging import merge_clusters
from tasks.run_names import study_tag


@flow(name="merge", flow_run_name="merge · {request.study_name} · {request.merging.kind}")
def merge(request: MergeRequest) -> tuple[str, ...]:
    """Return the names of the merged adapters, one per cluster; each is registered as a model of its own.

    Args:
        request: The study, and the merge algorithm with its settings.
    """
    with tags(study_tag(request.study_name)):
        return merge_clusters(request)
