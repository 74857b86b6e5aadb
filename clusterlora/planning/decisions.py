"""A person's decisions on a gate that refused, recorded with the study."""

from dataclasses import replace
from datetime import UTC, datetime

from clusterlora.metadata import Decision, GateDecisions
from clusterlora.ports import Stores
from clusterlora.settings import Rung


def decisions(study_name: str, stores: Stores) -> tuple[Decision, ...]:
    """Return every decision on a study's gate, in order."""
    return (stores.studies.metadata(study_name, GateDecisions) or GateDecisions()).decisions


def decide(study_name: str, stores: Stores, decision: Decision) -> None:
    """Record a decision with the present moment; a retry becomes a rung of the study's ladder, named by its number."""
    earlier = decisions(study_name, stores)
    rung = replace(decision.rung, name=f"asked-{len(earlier) + 1}") if decision.rung else None
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    stores.studies.save_metadata(study_name, GateDecisions((*earlier, replace(decision, rung=rung, at=moment))))


def asked_rungs(study_name: str, stores: Stores) -> tuple[Rung, ...]:
    """Return the rungs that people asked for."""
    return tuple(decision.rung for decision in decisions(study_name, stores) if decision.rung is not None)
