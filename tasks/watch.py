"""Tell the server that a file has dialogues for a study's next refresh."""

from datetime import UTC, datetime
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType

from clusterlora.requests import RefreshRequest
from tasks.events import DATA_CHANGED, tell
from tasks.run_names import study_tag
from tasks.study_task import TaskContext, study_task

_UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]


@study_task("changed? · {request.study_name}")
def tell_of_news(context: TaskContext, request: RefreshRequest) -> str:
    """Return in a sentence what a look at the file found; send an event where a refresh has something to do, once per change.

    While a refresh of the study is under way, nothing is looked at.
    """
    from clusterlora.planning.family import family
    from clusterlora.stages.watch import acted_on, look

    stores, root = context.stores, request.study_name
    if (run := _unfinished_refresh(root, family(root, stores)[-1])) is not None:
        return f"{request.path}: not looked at while {run} is under way"
    found = look(root, request.path, stores)
    if found.digest is not None:
        tell(DATA_CHANGED, root, found.sentence, path=request.path)
        acted_on(root, request.path, found.digest, stores)
    return found.sentence


def _unfinished_refresh(root: str, last: str) -> str | None:
    """Return the name of a run that refreshes the study, or is to; those of a schedule are none before their time."""
    with get_client(sync_client=True) as client:
        asked = client.read_flow_runs(flow_filter=_of_flow("refresh"), flow_run_filter=_unfinished())
        studies = client.read_flow_runs(flow_filter=_of_flow("study"), flow_run_filter=_unfinished(study_tag(last))) if last != root else []
    return next((run.name for run in (*(run for run in asked if _refreshes(run.parameters, root)), *studies)), None)


def _of_flow(name: str) -> FlowFilter:
    return FlowFilter(name=FlowFilterName(any_=[name]))


def _unfinished(tag: str | None = None) -> FlowRunFilter:
    return FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED)),
        expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"before_": datetime.now(UTC)}),
        tags=FlowRunFilterTags(all_=[tag]) if tag else None,
    )


def _refreshes(parameters: dict[str, Any], root: str) -> bool:
    return isinstance(parameters.get("request"), dict) and parameters["request"].get("study_name") == root
