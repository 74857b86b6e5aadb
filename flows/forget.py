"""A person leaves: everything of theirs is removed, and what learned from them is trained again."""

from prefect import flow

from clusterlora.requests import ForgetRequest
from tasks.forgetting import forget_person


@flow(name="forget", flow_run_name="forget")
def forget(request: ForgetRequest) -> str:
    """Return the file of the certificate, whose page is an artifact of this run.

    Launched again after an interruption it continues where it stopped. Nothing may run meanwhile but this.

    Args:
        request: The person, and the studies.
    """
    return forget_person(request)
