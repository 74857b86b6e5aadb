"""What happens when a study ends badly: the database and the tracker are told, and a cancelled study takes its runs along."""

from dataclasses import replace
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.flows import Flow
from prefect.states import Cancelling

from clusterlora.config import from_mapping
from clusterlora.errors import BadSettings
from clusterlora.wiring import from_environment
from tasks.run_names import study_tag

ALIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]


def record_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001  (Prefect's signature)
    """Give a study that failed, crashed or was cancelled a status that says so.

    A run that was itself refused (other settings under a taken name, unusable data) leaves the study of that name alone.
    """
    try:
        asked = from_mapping(flow_run.parameters["config"])
    except BadSettings:
        return
    stores = from_environment()
    if asked.name not in {name for name, _, _ in stores.studies.studies()} or stores.studies.status(asked.name) != "running":
        return
    if replace(stores.studies.study(asked.name), runtime=asked.runtime) == asked:
        ending = "cancelled" if state.is_cancelling() or state.is_cancelled() else "failed"
        stores.studies.set_status(asked.name, ending)
        stores.tracker.end_study(asked.name, status=ending)


def cancel_children(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001  (Prefect's signature)
    """Cancel the runs that a cancelled study has started: Prefect leaves runs of other deployments going."""
    tag = study_tag(flow_run.parameters["config"]["name"])
    alive = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[tag]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=ALIVE)),
    )
    with get_client(sync_client=True) as client:
        for child in client.read_flow_runs(flow_run_filter=alive):
            if child.id != flow_run.id:
                client.set_flow_run_state(child.id, Cancelling())
