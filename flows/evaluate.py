"""The deployed unit of evaluation: one shard of a study's items, answered by every method."""

from prefect import flow

from clusterlora.requests import EvaluationRequest
from tasks.evaluation import evaluate_shard


@flow(name="evaluate", flow_run_name="{request.run_name}")
def evaluate(request: EvaluationRequest) -> None:
    """Answer and score what is missing of a study.

    Args:
        request: Which part of its items, and which share of them.
    """
    evaluate_shard(request)
