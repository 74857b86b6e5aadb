"""A person's decisions on a gate that refused, recorded with the study."""

from dataclasses import replace
from datetime import UTC, datetime

from clusterlora.metadata import Decision, GateDecisions
from clusterlora.ports.stores import Stores


def decide(study_name: str, stores: Stores, decision: Decision) -> None:
    """Record a decision with the present moment; a retry becomes a rung of the study's ladder, named by its number."""
    earlier = (stores.studies.metadata(study_name, GateDecisions) or GateDecisions()).decisions
    rung = replace(decision.rung, name=f"asked-{len(earlier) + 1}") if decision.rung else None
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    stores.studies.save_metadata(study_name, GateDecisions((*earlier, replace(decision, rung=rung, at=moment))))
