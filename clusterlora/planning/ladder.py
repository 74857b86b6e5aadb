"""The gate's ladder: the configurations that the judged cluster tries, the gate's decision, and whether a person has to decide."""

from dataclasses import replace

from clusterlora.errors import UnknownName, counted
from clusterlora.gate.judged_cluster import judged_cluster
from clusterlora.gate.required_share import later_rungs_can_pass
from clusterlora.planning.study_state import StudyState
from clusterlora.settings import Rung
from clusterlora.values import Verdict

OWN = Rung(name="own")
"""The first rung of every ladder: the study's own configuration."""

GATED = "cluster"
"""The method one of whose clusters the gate judges."""
REFERENCE = "unified"
"""The method it has to beat."""
RANDOM_PARTITION = "random_cluster"
"""The method one of whose groups, as large as the judged cluster, the gate may hold it against."""


def gated(state: StudyState) -> bool:
    """Return whether the study has a gate: it trains clusters, and one of them has enough people to be judged, as far as that is known.

    A refresh has one only where its people were clustered anew: the clusters of before have passed theirs.
    """
    clustering = state.clustering
    if state.start is not None and not (state.regrouping and state.regrouping.anew):
        return False
    return GATED in state.settings.methods and (
        clustering is None or judged_cluster(clustering.sizes, state.settings.clustering) is not None
    )


def rungs(state: StudyState) -> tuple[Rung, ...]:
    """Return the ladder: the study's own configuration first, the rungs of people's retries last.

    A refresh trains by the rung that was decided for the study it goes on from, which may have been a person's retry there.
    """
    own = (OWN, *state.settings.gate.ladder, *state.retry_rungs)
    earlier = (state.start.rung,) if state.start is not None else ()
    return (*own, *(rung for rung in earlier if rung.name not in {one.name for one in own}))


def rung_by_name(state: StudyState, name: str) -> Rung:
    """Return a rung of the study's ladder. Raises UnknownName."""
    for rung in rungs(state):
        if rung.name == name:
            return rung
    raise UnknownName(f"study {state.name} has no rung {name!r}; its ladder is {', '.join(r.name for r in rungs(state))}")


def next_rung(state: StudyState) -> Rung | None:
    """Return the rung that the gate tries next; None when one has passed, all were tried, or nothing is gated."""
    if not gated(state) or any(verdict.passed for verdict in state.verdicts):
        return None
    judged = {verdict.rung for verdict in state.verdicts}
    return next((rung for rung in worth_trying(state) if rung.name not in judged), None)


def worth_trying(state: StudyState) -> tuple[Rung, ...]:
    """Return the rungs that the gate tries until one passes: without the settings' ladder where it can mend nothing.

    A retry that a later decision replaced before it was judged is not tried: it may be one that cannot be trained.
    """
    judged = {verdict.rung for verdict in state.verdicts}
    retries = tuple(
        decision.rung
        for decision in state.decisions
        if decision.rung is not None and (decision is state.decisions[-1] or decision.rung.name in judged)
    )
    return (OWN, *(() if why_not_climbed(state) else state.settings.gate.ladder), *retries)


def why_not_climbed(state: StudyState) -> tuple[str, ...]:
    """Return, in sentences, why no rung of the settings' ladder can mend what the first one failed; empty where one may.

    A rung changes how the judged cluster is trained. It mends neither a threshold that is out of reach of the data, nor a cluster of so few
    people that all of them together do not pass the sign test that later rungs must pass.
    """
    gate, first = state.settings.gate, next((verdict for verdict in state.verdicts if verdict.rung == OWN.name), None)
    if first is None or first.passed or not gate.ladder:
        return ()
    out_of_reach = state.ceiling.out_of_reach(gate) if state.ceiling else {}
    reasons = [out_of_reach[criterion.name] for criterion in first.criteria if not criterion.passed and criterion.name in out_of_reach]
    if not later_rungs_can_pass(gate, n_personas=first.n_personas, n_rungs=1 + len(gate.ladder)):
        people = counted(first.n_personas, "person").replace("persons", "people")
        reasons.append(f"{people} cannot pass a further rung but by luck: not even all of them together meet its sign test.")
    return tuple(reasons)


def gate_verdict(state: StudyState) -> Verdict | None:
    """Return the verdict of the rung that passed, else of the last one tried; None when nothing was judged."""
    verdicts = {verdict.rung: verdict for verdict in state.verdicts}
    tried = [verdicts[rung.name] for rung in rungs(state) if rung.name in verdicts]
    return next((verdict for verdict in tried if verdict.passed), tried[-1] if tried else None)


def decided_rung(state: StudyState) -> Rung:
    """Return the rung that passed the gate; when none did, the one with the largest gain on val; before the gate, the study's own."""
    verdicts = {verdict.rung: verdict for verdict in state.verdicts}
    tried = [rung for rung in rungs(state) if rung.name in verdicts]
    passed = [rung for rung in tried if verdicts[rung.name].passed]
    if state.start is not None and not gated(state):
        return state.start.rung
    if passed or not tried:
        return passed[0] if passed else OWN
    return max(tried, key=lambda rung: verdicts[rung.name].gain)


def refused(state: StudyState) -> bool:
    """Return whether the gate stops further training: every rung worth trying failed, and nobody decided to continue."""
    return _none_passed(state) and not _continues(state)


def goes_on_after_refusal(state: StudyState) -> bool:
    """Return whether a study that was compared because its gate refused is to train the rest all the same, and has not ended since."""
    return state.outcome is not None and state.outcome.gate_refused and not refused(state) and state.status != "finished"


def may_be_decided(state: StudyState) -> bool:
    """Return whether a person may decide: the gate refused, or the retry that was decided on has no verdict yet."""
    retry = state.decisions[-1].rung if state.decisions else None
    waits = retry is not None and retry.name not in {verdict.rung for verdict in state.verdicts}
    return refused(state) or (waits and _none_passed(replace(state, decisions=())))


def awaits_decision(state: StudyState) -> bool:
    """Return whether the gate refused and a person has yet to decide."""
    return state.settings.gate.on_failure == "ask" and _none_passed(state) and not _is_final(state)


def _is_final(state: StudyState) -> bool:
    """Return whether the last decision was to stop or to continue; after a retry that failed, another one is needed."""
    return bool(state.decisions) and state.decisions[-1].choice != "retry"


def _none_passed(state: StudyState) -> bool:
    tried_all = {rung.name for rung in worth_trying(state)} <= {verdict.rung for verdict in state.verdicts}
    return gated(state) and tried_all and not any(verdict.passed for verdict in state.verdicts)


def _continues(state: StudyState) -> bool:
    """Return whether a person, or else the settings, decided that a study whose gate failed continues."""
    if _is_final(state):
        return state.decisions[-1].choice == "continue"
    return state.settings.gate.on_failure == "continue"


def command_to_continue(study_name: str) -> str:
    """Return the command that trains the rest of a study whose gate refused; nothing that is trained is trained again."""
    return f"clusterlora study decide {study_name} --go-on && clusterlora study run --name {study_name}"
