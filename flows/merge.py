"""Merge the personal adapters of a study per cluster, by any of the merge algorithms, and compare the result with its other methods."""

from prefect import flow, tags

from clusterlora.requests import EvaluationRequest, MergeRequest
from tasks.comparison import publish_comparison, register
from tasks.evaluation import evaluate_shard
from tasks.merging import merge_clusters
from tasks.run_names import study_tag


@flow(name="merge", flow_run_name="merge · {request.study_name}")
def merge(request: MergeRequest) -> str:
    """Return the sentence that compares the merge. Nothing is trained.

    The merge belongs to the study if its settings ask for it, else to one of its own that is named after the two.

    Args:
        request: The study, and the merge algorithm with its settings.
    """
    with tags(study_tag(request.study_name)):
        merged = merge_clusters(request)
    with tags(study_tag(merged)):
        evaluate_shard(EvaluationRequest(study_name=merged))
        sentence = publish_comparison(merged)
        register(merged)
        return sentence
