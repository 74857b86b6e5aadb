"""What happens when a study ends badly: the database and the tracker are told, and a cancelled study takes its runs along."""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.flows import Flow
from prefect.states import Cancelling

from clusterlora.config import from_mapping
from clusterlora.errors import BadSettings, UnknownName
from clusterlora.settings import Study
from clusterlora.stores.resume import as_decided, refuse_other_settings
from clusterlora.wiring import from_environment
from tasks.run_names import study_tag

ALIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]


def record_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001  (Prefect's signature)
    """Give a study that failed, crashed or was cancelled a status that says so.

    A run that was itself refused (other settings under a taken name, unusable data) leaves the study of that name alone.
    """
    stores = from_environment()
    try:
        asked = _asked(flow_run)
        known = stores.studies.study(asked.name)
        refuse_other_settings(known, as_decided(asked, known))
    except (BadSettings, UnknownName):
        return
    if stores.studies.status(asked.name) == "running":
        ending = "cancelled" if state.is_cancelling() or state.is_cancelled() else "failed"
        stores.studies.set_status(asked.name, ending)
        stores.tracker.end_study(asked.name, status=ending)


def cancel_children(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001  (Prefect's signature)
    """Cancel the runs that a cancelled study has started: Prefect leaves runs of other deployments going."""
    try:
        tag = study_tag(_asked(flow_run).name)
    except BadSettings:
        return
    alive = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[tag]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=ALIVE)),
    )
    with get_client(sync_client=True) as client:
        for child in client.read_flow_runs(flow_run_filter=alive):
            if child.id != flow_run.id:
                client.set_flow_run_state(child.id, Cancelling())


def _asked(flow_run: FlowRun) -> Study:
    """Return the study a run was asked for: what its parameters leave out has its default. Raises BadSettings."""
    return from_mapping(flow_run.parameters.get("config", {}))
