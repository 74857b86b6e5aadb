"""Which refresh of a study is due."""

from clusterlora.requests import RefreshRequest
from clusterlora.settings import Study
from tasks.study_task import TaskContext, study_task


@study_task("refresh due? · {request.study_name}")
def due_refresh(context: TaskContext, request: RefreshRequest) -> Study | None:
    """Return the refresh that has not ended, else that of what is new in the file; None where nothing is.

    Raises:
        BadData: every problem of the new data at once.
    """
    from clusterlora.stages.refresh import due

    return due(request.study_name, request.path, context.stores)
