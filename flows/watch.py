"""Look whether a file of dialogues has changed: the automation of the deployment `refresh` starts that when this says so."""

from prefect import flow, tags
from prefect.client.schemas.objects import State
from prefect.states import Completed

from clusterlora.requests import RefreshRequest
from tasks.run_names import study_tag
from tasks.watch import tell_of_news


@flow(name="watch", flow_run_name="watch · {request.study_name}")
def watch(request: RefreshRequest) -> State[None]:
    """Send the event `clusterlora.data.changed` while the file has news that no refresh of the study has taken, three times at most.

    Args:
        request: The study and the file.
    """
    with tags(study_tag(request.study_name)):
        return Completed(message=tell_of_news(request))
