"""The gate's ladder: which configurations cluster 0 tries, what the gate decided, and whether a person has to."""

from clusterlora.errors import UnknownName
from clusterlora.planning.decisions import asked_rungs, decisions
from clusterlora.ports import Stores
from clusterlora.settings import Rung, Study

OWN = Rung(name="own")
"""The first rung of every ladder: the study's own configuration."""

GATED = "cluster"
"""The method whose first cluster is the gate."""
REFERENCE = "unified"
"""The method it has to beat."""


def gated(study: Study) -> bool:
    """Return whether the study has a gate: it trains clusters."""
    return GATED in study.methods


def rungs(study: Study, stores: Stores) -> tuple[Rung, ...]:
    """Return the ladder, the study's own configuration first and what people asked for last."""
    return (OWN, *study.gate.ladder, *asked_rungs(study.name, stores))


def rung_by_name(study: Study, name: str, stores: Stores) -> Rung:
    """Return a rung of the study's ladder. Raises UnknownName."""
    for rung in rungs(study, stores):
        if rung.name == name:
            return rung
    raise UnknownName(f"study {study.name} has no rung {name!r}; its ladder is {', '.join(r.name for r in rungs(study, stores))}")


def decided_rung(study: Study, stores: Stores) -> Rung:
    """Return the rung that passed the gate; when none did, the one with the largest gain on val; before the gate, the study's own."""
    verdicts = {verdict.rung: verdict for verdict in stores.studies.verdicts(study.name)}
    tried = [rung for rung in rungs(study, stores) if rung.name in verdicts]
    passed = [rung for rung in tried if verdicts[rung.name].passed]
    if passed or not tried:
        return passed[0] if passed else OWN
    return max(tried, key=lambda rung: verdicts[rung.name].gain)


def refused(study: Study, stores: Stores) -> bool:
    """Return whether the gate has spoken against spending more: every rung was tried and failed, and nobody says to go on."""
    return _none_passed(study, stores) and not _told_to_go_on(study, stores)


def awaits_decision(study: Study, stores: Stores) -> bool:
    """Return whether the gate refused, a person is to decide, and has not yet."""
    return study.gate.on_failure == "ask" and _none_passed(study, stores) and not _settled(study.name, stores)


def _settled(study_name: str, stores: Stores) -> bool:
    """Return whether the last word on the gate was to stop or to go on; after a retry that failed, another is awaited."""
    said = decisions(study_name, stores)
    return bool(said) and said[-1].choice != "retry"


def _none_passed(study: Study, stores: Stores) -> bool:
    verdicts = stores.studies.verdicts(study.name)
    tried_all = {rung.name for rung in rungs(study, stores)} <= {verdict.rung for verdict in verdicts}
    return gated(study) and tried_all and not any(verdict.passed for verdict in verdicts)


def _told_to_go_on(study: Study, stores: Stores) -> bool:
    if study.gate.on_failure == "ask":
        return _settled(study.name, stores) and decisions(study.name, stores)[-1].choice == "continue"
    return study.gate.on_failure == "continue"
