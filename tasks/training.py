"""Train a group of adapters in this process."""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from clusterlora.planning.training_groups import TrainingGroup
from clusterlora.wiring import from_environment
from tasks.device import exclusive, visible_gpu
from tasks.retrying import RETRIED
from tasks.run_log import PrefectRunLog


@task(task_run_name="train {title} · {study_name} · micro-batch {micro_batch}", cache_policy=NO_CACHE, **RETRIED)
def train_group(study_name: str, *, group: str, title: str, adapters: Sequence[str], micro_batch: int, attempt: int) -> str:
    """Return how many adapters were trained and what memory that took; those the store holds are not trained again.

    Raises:
        OutOfMemory: the micro-batch does not fit.
    """
    from clusterlora.models.memory import format_bytes, peak_memory_bytes
    from clusterlora.stages.train import train_group as train

    stores = from_environment()
    log = PrefectRunLog(study_name, "train", title)
    with exclusive(visible_gpu(), stores.home / ".locks"):
        n_trained = train(
            study_name, TrainingGroup(group, title, tuple(adapters)), attempt=attempt, micro_batch=micro_batch, stores=stores, log=log
        )
    used = next(a.micro_batch for a in stores.studies.attempts(study_name, group) if a.number == attempt)
    return f"{n_trained} adapters trained at micro-batch {used}, peak memory {format_bytes(peak_memory_bytes())}"
