"""The deployed GPU unit: one attempt at training one group of adapters."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from clusterlora.errors import OutOfMemory
from tasks.run_names import training_name
from tasks.training import train_group


def _name() -> str:
    return training_name(**flow_run.parameters)


@flow(name="train", flow_run_name=_name)
def train(study_name: str, group: str, title: str, adapters: list[str], micro_batch: int, attempt: int) -> State[None]:
    """Train adapters of an existing study on this worker's device.

    Running out of memory ends the run in a state of that name, so that it can be told from every other failure in the UI,
    in events and by whoever started it. Either way the state's message tells the micro-batch and the peak memory.

    Args:
        study_name: A study that exists.
        group: Name under which the attempts are counted.
        title: What to call it, for example `cluster 00`.
        adapters: Names of the study's adapters to train.
        micro_batch: Dialogues per forward pass. The optimiser's batch stays the recipe's.
        attempt: Number of this attempt.
    """
    try:
        done = train_group(study_name, group=group, title=title, adapters=adapters, micro_batch=micro_batch, attempt=attempt)
    except OutOfMemory as error:
        return Failed(name="OutOfMemory", message=str(error))
    return Completed(message=done)
