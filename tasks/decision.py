"""A person's word on a gate that refused: the study is suspended, and the answer to its form decides."""

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.input import RunInput
from pydantic import Field

from clusterlora.wiring import from_environment

PATIENCE_SECONDS = 30 * 24 * 3600
"""How long a suspended study waits before Prefect fails it; the same command continues it after that, too."""


class GateDecision(RunInput):
    """The form that Prefect's UI shows when a suspended study is resumed."""

    go_on: bool = Field(False, title="Train the rest all the same", description="No: compare what was trained so far, and stop.")


@task(task_run_name="ask about the gate? · {study_name}", cache_policy=NO_CACHE)
def question_for_a_person(study_name: str) -> str | None:
    """Return what to ask, in Markdown, when the gate refused and the study leaves it to a person; None when nothing is open."""
    from clusterlora.gate.report import markdown
    from clusterlora.stages.plan import awaits_decision

    stores = from_environment()
    if not awaits_decision(stores.studies.study(study_name), stores):
        return None
    return f"No configuration of the ladder passed the gate of **{study_name}**. The last one:\n\n" + markdown(
        stores.studies.verdicts(study_name)[-1]
    )


@task(task_run_name="note the decision · {study_name}", cache_policy=NO_CACHE)
def record_decision(study_name: str, go_on: bool) -> None:
    """Keep what was decided; from now on the study acts on it, however often it is launched."""
    from clusterlora.stages.plan import decide

    decide(study_name, from_environment(), go_on=go_on)
