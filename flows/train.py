"""The deployed GPU unit: one attempt at training one group of adapters."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from clusterlora.errors import OutOfMemory
from clusterlora.requests import TrainRequest
from tasks.training import train_group


@flow(name="train", flow_run_name="{request.run_name}")
def train(request: TrainRequest) -> State[None]:
    """Train adapters of an existing study on this worker's device.

    Running out of memory ends the run in a state of that name, so that it can be told from every other failure in the UI,
    in events and by whoever started it. Either way the state's message tells the micro-batch and the peak memory.

    Args:
        request: What to train, and how much of it at once.
    """
    try:
        done = train_group(request)
    except OutOfMemory as error:
        return Failed(name="OutOfMemory", message=str(error))
    return Completed(message=done)
