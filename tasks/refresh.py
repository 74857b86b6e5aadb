"""Which refresh of a study is due."""

from uuid import UUID

from clusterlora.requests import RefreshRequest
from clusterlora.settings import Study
from tasks.refreshes import refresh_under_way
from tasks.study_task import TaskContext, study_task


@study_task("another refresh? · {request.study_name}")
def refresh_before(context: TaskContext, request: RefreshRequest, run_id: str) -> str | None:
    """Return the name of a run that refreshes the study and was to start before this one; None if there is none."""
    return refresh_under_way(request.study_name, context.stores, before=UUID(run_id))


@study_task("refresh due? · {request.study_name}")
def due_refresh(context: TaskContext, request: RefreshRequest) -> Study | None:
    """Return the refresh that has not ended, else that of what is new in the file; None where nothing is.

    Raises:
        BadData: every problem of the new data at once.
    """
    from clusterlora.stages.refresh import due

    return due(request.study_name, request.path, context.stores)
