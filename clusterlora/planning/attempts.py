"""The next attempt at training a group, and its micro-batch."""

from clusterlora.ports.stores import Stores
from clusterlora.requests import TrainingGroup, TrainRequest
from clusterlora.settings import Study


def next_request(study: Study, group: TrainingGroup, stores: Stores) -> TrainRequest:
    """Return the attempt to run, with half the micro-batch of the last one if that ran out of memory.

    An attempt that is still open is returned again, so that its run is found instead of started twice.
    """
    attempts = stores.studies.attempts(study.name, group.name)
    number, micro_batch = 1, study.runtime.micro_batch or study.recipe.batch_size
    if attempts:
        last = attempts[-1]
        number = last.number if last.state == "running" else last.number + 1
        micro_batch = max(1, last.micro_batch // 2) if last.state == "out_of_memory" else last.micro_batch
    return TrainRequest(study_name=study.name, group=group, micro_batch=micro_batch, attempt=number)
