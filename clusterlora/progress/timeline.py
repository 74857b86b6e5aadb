"""How far a study is: what every phase took or is expected to take, what is known against unified, and what comes next."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from clusterlora.errors import counted
from clusterlora.evaluation.metrics import METRICS
from clusterlora.planning.ladder import GATED, awaits_decision, command_to_continue, gated, next_rung, refused, worth_trying
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.work_plan import WorkPlan, trained_adapters, work_plan
from clusterlora.progress.timing import seconds_by_phase
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


def phases(state: StudyState) -> tuple[Phase, ...]:
    """Return the timeline of a study; an expectation comes from what the same kind of work took so far."""
    study, verdicts = state.settings, state.verdicts
    seconds = seconds_by_phase(state.seconds)
    simple = [Phase(name, "done" if name in seconds else "to do", seconds.get(name)) for name in ("prepare", "cluster", "signal")]
    plan = work_plan(state) if state.clustering is not None else None
    trained = trained_adapters(state, plan) if plan else {}
    without_gate = "this study has none" if GATED in study.methods else "no clusters are compared"
    judged = f"{len(verdicts)} of up to {len(worth_trying(state))} configurations judged" if gated(state) else without_gate
    gate_state = "to do" if next_rung(state) else "done"
    return (
        *simple,
        Phase("gate", gate_state if gated(state) else "done", seconds.get("evaluate gate"), detail=judged),
        _training(state, plan, trained, seconds.get("train")),
        _evaluation(state, seconds),
        Phase("compare", "done" if state.outcome else "to do", seconds.get("compare")),
        Phase("register", "done" if state.status == _FINISHED else "to do", seconds.get("register")),
    )


def _training(state: StudyState, plan: WorkPlan | None, trained: Mapping[str, TrainedAdapter], spent: float | None) -> Phase:
    if plan is None:
        return Phase("train", "to do", spent)
    missing = [spec for name, spec in plan.specs.items() if name not in trained and not spec.merge_of]
    if not missing or refused(state):
        return Phase("train", "done", spent, detail=counted(len(trained), "adapter"))
    personas = state.dataset.by_id()
    steps = 0
    for spec in missing:
        n_dialogues = sum(len(personas[p].of_split("train")) for p in spec.persona_ids)
        steps += ceil(n_dialogues / spec.recipe.batch_size) * spec.recipe.epochs
    timed_adapters = [adapter for adapter in trained.values() if adapter.steps and adapter.seconds]
    pace = sum(a.seconds for a in timed_adapters) / sum(a.steps for a in timed_adapters) if timed_adapters else None
    detail = f"{len(trained)} of {len(plan.specs)} adapters, {counted(steps, 'step')} to go"
    return Phase("train", "under way" if trained else "to do", spent, pace * steps if pace else None, detail)


def _evaluation(state: StudyState, seconds: Mapping[str, float]) -> Phase:
    """Return the phase of the test answers, expected at the pace of the gate's answers on val."""
    answered = seconds.get("evaluate test")
    if state.outcome is not None:
        return Phase("evaluate", "done", answered)
    if answered is not None:
        return Phase("evaluate", "under way", answered)
    gate_seconds, verdicts = seconds.get("evaluate gate"), state.verdicts
    n_judged = 2 * sum(verdict.n_items for verdict in verdicts)
    if not gate_seconds or not n_judged:
        return Phase("evaluate", "to do", None)
    n_test = sum(turn.role == "assistant" for p in state.dataset.personas for d in p.of_split("test") for turn in d.turns)
    return Phase("evaluate", "to do", None, gate_seconds / n_judged * n_test * len(state.settings.methods))


def against_unified(state: StudyState) -> tuple[str, ...]:
    """Return what is known so far, one sentence each: the gate's verdicts on val, then the comparison on test."""
    sentences = [
        f"on val, {v.adapter}: {100 * v.gain:+.2f} points against unified, {'passed' if v.passed else 'refused'}" for v in state.verdicts
    ]
    metric = METRICS[state.settings.evaluation.headline]
    for score in state.outcome.scores if state.outcome else ():
        if score.difference is not None and score.ci_low is not None and score.ci_high is not None:
            mean, low, high = (metric.format(value, signed=True) for value in (score.difference, score.ci_low, score.ci_high))
            sentences.append(f"on test, {score.method}: {mean} against unified [{low}, {high}]")
    return tuple(sentences)


def _after_the_end(state: StudyState) -> str:
    """Return what to do with a finished study: serve its champion where it has one, else what would go on."""
    if refused(state):
        return f"The gate refused. To train the rest all the same: {command_to_continue(state.name)}"
    if state.outcome is not None and state.outcome.champion is not None:
        return f"Nothing: the study is finished. Serve its champion, {state.outcome.champion}, or look at the report."
    return "Nothing: the study is finished, without a champion. The verdict says why; more people or dialogues, or another base, may help."


def next_step(state: StudyState) -> str:
    """Return what happens next, in a sentence."""
    if state.status == _FINISHED:
        return _after_the_end(state)
    if awaits_decision(state):
        return f"A person decides on the refused gate: resume the run in Prefect, or `clusterlora study decide {state.name} --help`."
    if state.status == "failed":
        return "Start it again with the same command: nothing that finished is done again."
    waiting = [phase.name for phase in phases(state) if phase.state != "done"]
    words: Mapping[str, str] = {
        "prepare": "The data is read, checked and split.",
        "cluster": "The personas are grouped.",
        "signal": "How much there is to win is measured.",
        "gate": "Unified and one cluster are trained and judged on val; if the cluster is no better, the ladder is tried.",
        "train": "The remaining adapters are trained.",
        "evaluate": "Every method answers everyone's test items.",
        "compare": "The answers are compared.",
        "register": "The models are registered.",
    }
    return words[waiting[0]] if waiting else "The models are registered."
