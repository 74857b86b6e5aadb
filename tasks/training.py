"""Train a group of adapters in this process."""

from clusterlora.requests import TrainRequest, refuse_other_version
from tasks.study_task import TaskContext, study_task


@study_task(
    "train {request.group.title} · {request.study_name} · micro-batch {request.micro_batch}",
    progress="{request.study_name} train {request.group.title}",
    on_gpu=True,
)
def train_group(context: TaskContext, request: TrainRequest) -> str:
    """Return a sentence with the number of adapters trained and the peak memory; adapters in the store are not trained again.

    Raises:
        BadSettings: another version of clusterlora asks.
        OutOfMemory: the micro-batch does not fit.
    """
    from clusterlora.engine.memory import format_bytes, peak_memory_bytes
    from clusterlora.errors import counted
    from clusterlora.stages.train import train_group as train

    refuse_other_version(request)
    stores = context.stores
    n_trained = train(request, stores, context.log)
    attempts = stores.studies.attempts(request.study_name, request.group.name)
    micro_batch = next(attempt.micro_batch for attempt in attempts if attempt.number == request.attempt)
    return f"{counted(n_trained, 'adapter')} trained at micro-batch {micro_batch}, peak memory {format_bytes(peak_memory_bytes())}"
