"""A person who leaves is forgotten on the worker that runs this, which has the folder of the results and that of the servers."""

from prefect.artifacts import create_markdown_artifact

from clusterlora.requests import ForgetRequest
from clusterlora.wiring import services_from_environment
from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task


@study_task("forget", progress="forget", on_gpu=True)
def forget_person(context: TaskContext, request: ForgetRequest) -> str:
    """Return the file of the certificate; its page is an artifact.

    Raises:
        BadData, BadSettings, UnknownName: as `clusterlora persona forget`, before anything is changed.
    """
    from clusterlora.pseudonyms import as_pseudonym
    from clusterlora.stages.forget import forget

    file = forget(
        as_pseudonym(request.digest),
        context.stores,
        context.log,
        only=request.studies,
        services=services_from_environment(),
        remove_backups=request.remove_backups,
    )
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    create_markdown_artifact(page, key=artifact_key("forgotten", request.digest[:12]), description="Certificate of removal")
    return str(file)
