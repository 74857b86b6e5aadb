"""Merge personal adapters per cluster in this process."""

from clusterlora.requests import MergeRequest
from tasks.study_task import TaskContext, study_task


@study_task("merge · {request.study_name}", progress="{request.study_name} merge")
def merge_clusters(context: TaskContext, request: MergeRequest) -> str:
    """Return the name of the study that holds the merged adapters; those that exist already are not made again.

    Raises:
        BadData: personal adapters are missing.
    """
    from clusterlora.stages.merge import merge

    return merge(request, context.stores, context.log)
