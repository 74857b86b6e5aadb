"""An empirical null: the study again and again with everybody's dialogues exchanged at random, and how often it claims personalisation."""

from prefect import flow, tags
from prefect.client.schemas.objects import State

from clusterlora.planning.null_studies import null_studies
from clusterlora.requests import PermutationRequest
from flows.study import study
from tasks.permutation import publish_null_rate
from tasks.run_names import study_tag


@flow(name="permute", flow_run_name="permute · {request.run_name}")
def permute(request: PermutationRequest) -> str | State[State[None]]:
    """Return how often studies in which nothing is personal claim that it is, or the state of one that failed.

    Launched again it continues where it stopped.

    Args:
        request: The study and how often it is permuted.
    """
    nulls = null_studies(request.study, request.times)
    for null in nulls:
        state = study(config=null, return_state=True)  # pyrefly: ignore[no-matching-overload]
        if not state.is_completed():
            return state
    with tags(study_tag(request.study.name)):
        return publish_null_rate(request.study.name, tuple(null.name for null in nulls))
