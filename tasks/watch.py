"""Tell the server that a file has dialogues for a study's next refresh."""

import time

from clusterlora.requests import RefreshRequest
from tasks.events import DATA_CHANGED, DATA_LEFT, tell
from tasks.refreshes import refresh_under_way
from tasks.study_task import TaskContext, study_task


@study_task("changed? · {request.study_name}")
def tell_of_news(context: TaskContext, request: RefreshRequest) -> str:
    """Return in a sentence what a look at the file found; send an event where a refresh has something to do, until one has done it.

    While a refresh of the study is under way, nothing is looked at.
    """
    from clusterlora.stages.watch import look

    stores, root = context.stores, request.study_name
    if (run := refresh_under_way(root, stores)) is not None:
        return f"{request.path}: not looked at while {run} is under way; if its process has died, cancel it in Prefect"
    found = look(root, request.path, stores, time.time())
    if found.tell is not None:
        tell(DATA_LEFT if found.tell == "left" else DATA_CHANGED, root, found.sentence, path=request.path)
    return found.sentence
