"""Answer and score one shard of a study's items in this process."""

from clusterlora.requests import EvaluationRequest, refuse_other_version
from tasks.study_task import TaskContext, study_task


@study_task(
    "evaluate {request.part} {request.shard}/{request.shards} · {request.study_name}",
    progress="{request.study_name} evaluate {request.part} {request.shard}",
    on_gpu=True,
)
def evaluate_shard(context: TaskContext, request: EvaluationRequest) -> int:
    """Return the number of answers generated; items the study already has answers to are skipped.

    Raises:
        BadSettings: another version of clusterlora asks.
    """
    refuse_other_version(request)
    if request.part == "probe":
        from clusterlora.stages.probe import probe

        probe(request.study_name, context.stores, context.log)
        return 0
    from clusterlora.stages.evaluate import evaluate

    return evaluate(request, context.stores, context.log)
