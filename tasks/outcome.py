"""Hooks for a study that does not complete: record its status in database and tracker, and cancel its runs with it."""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.flows import Flow
from prefect.states import Cancelling

from clusterlora.config import from_mapping
from clusterlora.errors import BadSettings, UnknownName
from clusterlora.form import MISSION, filled_in
from clusterlora.settings import Study
from clusterlora.stores.resume import as_decided, refuse_other_settings
from clusterlora.wiring import from_environment
from tasks.run_names import study_tag
from tasks.run_pages import all_runs

ALIVE = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]


def record_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001  (Prefect's signature)
    """Set the status of a study that failed, crashed or was cancelled.

    A run that was refused (other settings under a taken name, unusable data) does not change the study of that name.
    """
    stores = from_environment()
    try:
        study = _study_of(flow_run)
        recorded = stores.studies.study(study.name)
        refuse_other_settings(recorded, as_decided(study, recorded))
    except (BadSettings, UnknownName):
        return
    if stores.studies.status(study.name) == "running":
        status = "cancelled" if state.is_cancelling() or state.is_cancelled() else "failed"
        stores.studies.set_status(study.name, status)
        stores.tracker.end_study(study.name, status=status)


def cancel_children(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001  (Prefect's signature)
    """Cancel the runs that a cancelled study has started; Prefect does not cancel runs of other deployments."""
    try:
        tag = study_tag(_study_of(flow_run).name)
    except BadSettings:
        return
    alive = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[tag]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=ALIVE)),
    )
    with get_client(sync_client=True) as client:
        for child in all_runs(client, flow_run_filter=alive):
            if child.id != flow_run.id:
                client.set_flow_run_state(child.id, Cancelling())


def _study_of(flow_run: FlowRun) -> Study:
    """Return the study in a run's parameters, with defaults for what they leave out. Raises BadSettings."""
    given = flow_run.parameters
    return filled_in(given.get("preset"), from_mapping(given["config"]) if "config" in given else MISSION)
