"""The deployed evaluation run: one shard of a study's items, answered by every method."""

from prefect import flow

from clusterlora.requests import EvaluationRequest
from tasks.evaluation import evaluate_shard


@flow(name="evaluate", flow_run_name="{request.run_name}")
def evaluate(request: EvaluationRequest) -> None:
    """Generate and score the answers of a shard that the study does not have yet.

    Args:
        request: The study, the part of its evaluation, and the shard.
    """
    evaluate_shard(request)
