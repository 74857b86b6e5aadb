"""What a person said about a gate that refused: kept with the study, with who said it and when."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from clusterlora.ports import Stores
from clusterlora.settings import Rung
from clusterlora.stores.json_codec import from_plain, plain

Choice = Literal["stop", "continue", "retry"]

_FACT = "gate_decisions"


@dataclass(frozen=True, slots=True)
class Decision:
    """One word on a refused gate. `rung` is what to try with the choice `retry`; `by` is empty when nobody gave a name."""

    choice: Choice
    rung: Rung | None = None
    by: str = ""
    at: str = ""

    def __str__(self) -> str:
        what = {"stop": "stop", "continue": "continue anyway", "retry": f"retry with {self.rung and described(self.rung)}"}[self.choice]
        return f"{what}, decided by {self.by or 'somebody who gave no name'}, {self.at}"


def described(rung: Rung) -> str:
    """Return what a rung changes, in words."""
    parts = {"learning rate": rung.learning_rate, "epochs": rung.epochs, "start": rung.init}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None) or rung.name


def decisions(study_name: str, stores: Stores) -> tuple[Decision, ...]:
    """Return everything that was decided on a study's gate, in order."""
    found: list[Any] = stores.studies.facts(study_name).get(_FACT, [])
    return tuple(from_plain(Decision, one) for one in found)


def decide(study_name: str, stores: Stores, decision: Decision) -> None:
    """Record a decision; a retry becomes a rung of the study's ladder, named by its number."""
    known = decisions(study_name, stores)
    rung = replace(decision.rung, name=f"asked-{len(known) + 1}") if decision.rung else None
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    stores.studies.save_fact(study_name, _FACT, [plain(one) for one in (*known, replace(decision, rung=rung, at=moment))])


def asked_rungs(study_name: str, stores: Stores) -> tuple[Rung, ...]:
    """Return the rungs that people asked for."""
    return tuple(one.rung for one in decisions(study_name, stores) if one.rung is not None)
