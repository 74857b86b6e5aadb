"""A person's decision on a gate that refused: the study is suspended until its form is answered."""

from typing import Literal

from prefect.artifacts import create_markdown_artifact
from prefect.input import RunInput
from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from clusterlora.recipe import MOST_EPOCHS, MOST_LEARNING_RATE
from tasks.run_log import artifact_key
from tasks.study_task import TaskContext, study_task

PATIENCE_SECONDS = 30 * 24 * 3600
"""How long a suspended study waits before Prefect fails it; launched again, it continues even then."""


_RETRY_DIFFERS: JsonDict = {
    "if": {"properties": {"choice": {"const": "retry"}}, "required": ["choice"]},
    "then": {
        "anyOf": [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in ("learning_rate", "epochs", "init")]
    },
}


class GateDecision(RunInput):
    """The form that Prefect's UI shows when a suspended study is resumed.

    The schema requires that a retry changes something: the server checks an answer against it before it resumes the run, while an
    answer that only this class refused would fail the run.
    """

    model_config = ConfigDict(json_schema_extra=_RETRY_DIFFERS)

    choice: Literal["stop", "continue", "retry"] = Field(
        "stop",
        title="What now?",
        description="stop: compare what is trained. continue: train the rest all the same. retry: try once more with a change below.",
    )
    learning_rate: float | None = Field(
        None, gt=0, le=MOST_LEARNING_RATE, title="Retry with this learning rate", description="Empty: the study's."
    )
    epochs: int | None = Field(None, ge=1, le=MOST_EPOCHS, title="Retry with this many epochs", description="Empty: the study's.")
    init: Literal["base", "unified"] | None = Field(None, title="Retry from", description="unified is a warm start. Empty: the study's.")
    decided_by: str = Field("", max_length=100, title="Your name", description="Kept with the decision; Prefect does not know who you are.")


@study_task("ask about the gate? · {study_name}")
def question_for_a_person(context: TaskContext, study_name: str) -> tuple[str, str] | None:
    """Return (key, Markdown text) of the question when the gate refused and a person has to decide; None otherwise."""
    from clusterlora.gate.report import markdown
    from clusterlora.planning.ladder import awaits_decision
    from clusterlora.planning.study_state import read_state

    state = read_state(study_name, context.stores)
    if not awaits_decision(state):
        return None
    text = f"No configuration of the ladder passed the gate of **{study_name}**. The last one:\n\n" + markdown(state.verdicts[-1])
    return f"gate-{len(state.decisions) + 1}", text


@study_task("note the decision · {study_name}")
def record_decision(context: TaskContext, study_name: str, answer: GateDecision) -> None:
    """Record the decision with its author and time; every later launch of the study acts on it."""
    from clusterlora.metadata import Decision
    from clusterlora.planning.decisions import decide
    from clusterlora.planning.study_state import read_state
    from clusterlora.settings import Rung

    retry = answer.choice == "retry"
    rung = Rung(name="asked", learning_rate=answer.learning_rate, epochs=answer.epochs, init=answer.init) if retry else None
    stores = context.stores
    decide(study_name, stores, Decision(answer.choice, rung, answer.decided_by.strip()))
    decisions = "".join(f"{number}. {decision}\n" for number, decision in enumerate(read_state(study_name, stores).decisions, start=1))
    create_markdown_artifact(
        f"## Decisions on the gate of {study_name}\n\n{decisions}",
        key=artifact_key("decision", study_name),
        description=f"{study_name}: {answer.choice}",
    )
