"""The next attempt at training a group, and its micro-batch."""

from clusterlora.ports.stores import Stores
from clusterlora.requests import TrainingGroup, TrainRequest
from clusterlora.settings import Study


def next_request(study: Study, group: TrainingGroup, stores: Stores) -> TrainRequest:
    """Return the attempt to run: with the micro-batch that is set now, or after one ran out of memory with half, if that is less.

    An attempt that is still open is returned again, so that its run is found instead of started twice; such a run goes on with the
    micro-batch that is recorded of it.
    """
    attempts = stores.studies.attempts(study.name, group.name)
    most = study.runtime.micro_batch or study.recipe.batch_size
    number, micro_batch = 1, most
    if attempts:
        last = attempts[-1]
        number = last.number if last.state == "running" else last.number + 1
        # An attempt may have been made with less than was asked for, where other studies' did not fit: what is set now is heard.
        if any(attempt.state == "out_of_memory" for attempt in attempts):
            halved = max(1, last.micro_batch // 2) if last.state == "out_of_memory" else last.micro_batch
            micro_batch = min(halved, most)
    return TrainRequest(study_name=study.name, group=group, micro_batch=micro_batch, attempt=number)
