"""Measure in this process what a study's adapters have memorised, and publish the tables as an artifact."""

from prefect.artifacts import create_markdown_artifact

from clusterlora.requests import PrivacyRequest
from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task


@study_task("privacy · {request.study_name}", progress="{request.study_name} privacy", on_gpu=True)
def publish_privacy(context: TaskContext, request: PrivacyRequest) -> str:
    """Return in a sentence what is memorised more than chance would have it.

    Raises:
        BadData: the study is not compared yet.
    """
    from clusterlora.evaluation.memorisation_words import markdown, sentence
    from clusterlora.stages.privacy import measure_privacy

    name = request.study_name
    memory = measure_privacy(name, context.stores, context.log, n_prompts=request.prompts, n_words=request.words)
    create_markdown_artifact(markdown(memory), key=artifact_key("privacy", name), description=sentence(memory))
    return sentence(memory)
