"""A person's decisions on a gate that refused, recorded with the study."""

from dataclasses import replace
from datetime import UTC, datetime

from clusterlora.errors import BadSettings
from clusterlora.metadata import Decision, GateDecisions
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe, problems


def decide(study_name: str, stores: Stores, decision: Decision) -> None:
    """Record a decision with the present moment; a retry becomes a rung of the study's ladder, named by its number.

    Raises BadSettings, and records nothing, if the retry could not be trained.
    """
    if (retry := decision.rung) is not None:
        default = Recipe()
        rate = default.learning_rate if retry.learning_rate is None else retry.learning_rate
        epochs = default.epochs if retry.epochs is None else retry.epochs
        for problem in problems(replace(default, learning_rate=rate, epochs=epochs)):
            raise BadSettings(f"a retry with {problem}")
    earlier = (stores.studies.metadata(study_name, GateDecisions) or GateDecisions()).decisions
    rung = replace(decision.rung, name=f"asked-{len(earlier) + 1}") if decision.rung else None
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    stores.studies.save_metadata(study_name, GateDecisions((*earlier, replace(decision, rung=rung, at=moment))))
