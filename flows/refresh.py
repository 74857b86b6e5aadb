"""A finished study's champion, refreshed with the dialogues that came since: the next study of its family."""

from prefect import flow, tags
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from clusterlora.requests import RefreshRequest
from flows.study import study
from tasks.refresh import due_refresh, refresh_before
from tasks.run_names import study_tag


@flow(name="refresh", flow_run_name="refresh · {request.study_name}")
def refresh(request: RefreshRequest) -> State[None] | State[State[None]]:
    """Run the refreshes that are due, one after another: one that was interrupted, then one of what is new in the file.

    Launched again it continues where it stopped. While another run refreshes the study, this one does nothing.

    Args:
        request: The study and the file.
    """
    with tags(study_tag(request.study_name)):
        other = refresh_before(request, flow_run.id)
    if other is not None:
        return Completed(message=f"nothing is done while {other} is under way; if its process has died, cancel it in Prefect")
    n_ended = 0
    while True:
        with tags(study_tag(request.study_name)):
            due = due_refresh(request)
        if due is None:
            return Completed(message=f"{n_ended} refreshes; nothing else in {request.path} is new")
        state = study(config=due, return_state=True)  # pyrefly: ignore[no-matching-overload]
        if not state.is_completed():
            return state
        n_ended += 1
