"""The deployed training run: one attempt at training one group of adapters."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from clusterlora.errors import OutOfMemory
from clusterlora.requests import TrainRequest
from tasks.training import train_group


@flow(name="train", flow_run_name="{request.run_name}")
def train(request: TrainRequest) -> State[None]:
    """Train adapters of an existing study on this worker's device.

    Running out of memory ends the run in a state named OutOfMemory, which distinguishes it from other failures in the UI, in events
    and for the parent run. The state's message gives the micro-batch and the peak memory.

    Args:
        request: The study, the group of adapters, the micro-batch and the number of the attempt.
    """
    try:
        summary = train_group(request)
    except OutOfMemory as error:
        return Failed(name="OutOfMemory", message=str(error))
    return Completed(message=summary)
