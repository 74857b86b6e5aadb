"""Train a group of adapters in this process."""

from clusterlora.requests import TrainRequest
from tasks.study_task import TaskContext, study_task


@study_task(
    "train {request.group.title} · {request.study_name} · micro-batch {request.micro_batch}",
    progress="{request.study_name} train {request.group.title}",
    on_gpu=True,
)
def train_group(context: TaskContext, request: TrainRequest) -> str:
    """Return how many adapters were trained and what memory that took; those the store holds are not trained again.

    Raises:
        OutOfMemory: the micro-batch does not fit.
    """
    from clusterlora.models.memory import format_bytes, peak_memory_bytes
    from clusterlora.stages.train import train_group as train

    stores = context.stores
    n_trained = train(request, stores, context.log)
    used = next(a.micro_batch for a in stores.studies.attempts(request.study_name, request.group.name) if a.number == request.attempt)
    return f"{n_trained} adapters trained at micro-batch {used}, peak memory {format_bytes(peak_memory_bytes())}"
