"""Runs that refresh a study, or are about to."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import takewhile
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType

from clusterlora.ports.stores import Stores
from tasks.run_names import study_tag
from tasks.run_pages import all_runs

_UNFINISHED = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]


def refresh_under_way(root: str, stores: Stores, *, before: UUID | None = None) -> str | None:
    """Return the name of an unfinished run that refreshes a study or is to; those of a schedule are none before their time.

    A refresh that the command line begins is a run of `study` with the refresh's name, which the database may not have yet.

    Args:
        before: a run of `refresh`; only those that were to start earlier count, so of several that begin at once one goes on.
    """
    runs = sorted(_unfinished(), key=lambda run: (run.expected_start_time or run.created or datetime.now(UTC), run.id))
    others = runs if before is None else list(takewhile(lambda run: run.id != before, runs))
    return next((run.name for run in others if _refreshes(run, root) or _is_refresh(run, root, stores)), None)


def _unfinished() -> Sequence[FlowRun]:
    unfinished = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED)),
        expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"before_": datetime.now(UTC)}),
    )
    with get_client(sync_client=True) as client:
        return all_runs(client, flow_filter=FlowFilter(name=FlowFilterName(any_=["refresh", "study"])), flow_run_filter=unfinished)


def _refreshes(run: FlowRun, root: str) -> bool:
    request = run.parameters.get("request")
    return isinstance(request, dict) and request.get("study_name") == root


def _is_refresh(run: FlowRun, root: str, stores: Stores) -> bool:
    """Return whether a run is of a study that refreshes this one, by its tag; another study may have such a name.

    A run within one of `refresh` is not asked: if that crashed, its own state may stay Running.
    """
    from clusterlora.planning.family import family

    named = [tag for tag in run.tags if re.fullmatch(rf"{re.escape(study_tag(root))}\.r\d+", tag)]
    if not named or run.parent_task_run_id is not None:
        return False
    foreign = {study_tag(name) for name, *_ in stores.studies.studies()} - {study_tag(name) for name in family(root, stores)}
    return any(tag not in foreign for tag in named)
