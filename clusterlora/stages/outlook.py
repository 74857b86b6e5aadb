"""How far a study is: what every phase took or is expected to take, what is known against unified, and what comes next."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from clusterlora.evaluation.metrics import METRICS
from clusterlora.metadata import Outcome
from clusterlora.planning.ladder import awaits_decision, gated, refused, rungs
from clusterlora.planning.work_plan import WorkPlan, trained_adapters, work_plan
from clusterlora.ports import Stores
from clusterlora.settings import Study
from clusterlora.stages.timing import seconds_by_phase
from clusterlora.values import TrainedAdapter

_FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a study. `spent` and `expected` are seconds of work, summed over workers; None where nothing is known."""

    name: str
    state: str
    spent: float | None
    expected: float | None = None
    detail: str = ""


def phases(study: Study, stores: Stores) -> tuple[Phase, ...]:
    """Return the timeline of a study; an expectation comes from what the same kind of work took so far."""
    seconds = seconds_by_phase(stores, study.name)
    is_compared = stores.studies.metadata(study.name, Outcome) is not None
    verdicts = stores.studies.verdicts(study.name)
    simple = [Phase(name, "done" if name in seconds else "to do", seconds.get(name)) for name in ("prepare", "cluster", "signal")]
    plan = work_plan(study, stores) if stores.studies.clustering(study.name) is not None else None
    held = trained_adapters(study, stores, plan) if plan else {}
    judged = f"{len(verdicts)} of up to {len(rungs(study, stores))} configurations judged" if gated(study) else "this study has none"
    gate_state = "done" if any(v.passed for v in verdicts) or len(verdicts) == len(rungs(study, stores)) else "to do"
    return (
        *simple,
        Phase("gate", gate_state if gated(study) else "done", seconds.get("evaluate gate"), detail=judged),
        _training(study, stores, plan, held, seconds.get("train")),
        _evaluation(study, stores, seconds),
        Phase("compare", "done" if is_compared else "to do", seconds.get("compare")),
        Phase("register", "done" if stores.studies.status(study.name) == _FINISHED else "to do", seconds.get("register")),
    )


def _training(study: Study, stores: Stores, plan: WorkPlan | None, held: Mapping[str, TrainedAdapter], spent: float | None) -> Phase:
    if plan is None:
        return Phase("train", "to do", spent)
    missing = [spec for name, spec in plan.specs.items() if name not in held and not spec.merge_of]
    if not missing or refused(study, stores):
        return Phase("train", "done", spent, detail=f"{len(held)} adapters")
    personas = stores.studies.dataset(study.name).by_id()
    steps = 0
    for spec in missing:
        n_dialogues = sum(len(personas[p].of_split("train")) for p in spec.persona_ids)
        steps += ceil(n_dialogues / spec.recipe.batch_size) * spec.recipe.epochs
    known = [adapter for adapter in held.values() if adapter.steps and adapter.seconds]
    pace = sum(a.seconds for a in known) / sum(a.steps for a in known) if known else None
    detail = f"{len(held)} of {len(plan.specs)} adapters, {steps} steps to go"
    return Phase("train", "under way" if held else "to do", spent, pace * steps if pace else None, detail)


def _evaluation(study: Study, stores: Stores, seconds: Mapping[str, float]) -> Phase:
    """Return the phase of the test answers, expected at the pace of the gate's answers on val."""
    answered = seconds.get("evaluate test")
    if stores.studies.metadata(study.name, Outcome) is not None:
        return Phase("evaluate", "done", answered)
    if answered is not None:
        return Phase("evaluate", "under way", answered)
    gate_seconds, verdicts = seconds.get("evaluate gate"), stores.studies.verdicts(study.name)
    n_judged = 2 * sum(verdict.n_items for verdict in verdicts)
    if not gate_seconds or not n_judged:
        return Phase("evaluate", "to do", None)
    dataset = stores.studies.dataset(study.name)
    n_test = sum(turn.role == "assistant" for p in dataset.personas for d in p.of_split("test") for turn in d.turns)
    return Phase("evaluate", "to do", None, gate_seconds / n_judged * n_test * len(study.methods))


def against_unified(study: Study, stores: Stores) -> tuple[str, ...]:
    """Return what is known so far, one sentence each: the gate's verdicts on val, then the comparison on test."""
    outcome = stores.studies.metadata(study.name, Outcome)
    said = [
        f"on val, cluster 0 with {v.rung}: {100 * v.gain:+.2f} points against unified, {'passed' if v.passed else 'refused'}"
        for v in stores.studies.verdicts(study.name)
    ]
    metric = METRICS[study.evaluation.headline]
    for score in outcome.scores if outcome else ():
        if score.difference is not None and score.ci_low is not None and score.ci_high is not None:
            mean, low, high = (metric.format(value, signed=True) for value in (score.difference, score.ci_low, score.ci_high))
            said.append(f"on test, {score.method}: {mean} against unified [{low}, {high}]")
    return tuple(said)


def next_step(study: Study, stores: Stores) -> str:
    """Return what happens next, in a sentence."""
    if stores.studies.status(study.name) == _FINISHED:
        return "Nothing: the study is finished. Serve its champion, or look at the report."
    if awaits_decision(study, stores):
        return f"A person decides on the refused gate: resume the run in Prefect, or `clusterlora study decide {study.name} --help`."
    if stores.studies.status(study.name) == "failed":
        return "Start it again with the same command: nothing that finished is done again."
    waiting = [phase.name for phase in phases(study, stores) if phase.state != "done"]
    words: Mapping[str, str] = {
        "prepare": "The data is read, checked and split.",
        "cluster": "The personas are grouped.",
        "signal": "How much there is to win is measured.",
        "gate": "Unified and cluster 0 are trained and judged on val; if cluster 0 is no better, the ladder is tried.",
        "train": "The remaining adapters are trained.",
        "evaluate": "Every method answers everyone's test items.",
        "compare": "The answers are compared.",
        "register": "The models are registered.",
    }
    return words[waiting[0]] if waiting else "The models are registered."
