"""How far a study is: what every phase took or is expected to take, what is known against unified, and what comes next."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from clusterlora.errors import counted
from clusterlora.evaluation.metrics import METRICS
from clusterlora.planning.ladder import (
    GATED,
    awaits_decision,
    command_to_continue,
    gated,
    goes_on_after_refusal,
    next_rung,
    refused,
    worth_trying,
)
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.tuning import chosen, planned_methods, tuned_methods
from clusterlora.planning.work_plan import trained_adapters, work_plan
from clusterlora.progress.estimate import estimate
from clusterlora.progress.timing import seconds_by_phase

_FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a study: `spent` are seconds of work, summed over workers, `expected` seconds until it is done on the workers there are.

    None where nothing is known.
    """

    name: str
    state: str
    spent: float | None
    expected: float | None = None
    detail: str = ""


def phases(state: StudyState) -> tuple[Phase, ...]:
    """Return the timeline of a study; what is expected comes from `estimate`."""
    study, verdicts = state.settings, state.verdicts
    seconds, left = seconds_by_phase(state.seconds), estimate(state)
    simple = [Phase(name, "done" if name in seconds else "to do", seconds.get(name)) for name in ("prepare", "cluster", "signal")]
    if left is not None and left.preparation:
        simple[1] = replace(simple[1], expected=left.preparation)
    without_gate = "this study has none" if GATED in study.methods else "no clusters are compared"
    judged = f"{len(verdicts)} of up to {len(worth_trying(state))} configurations judged" if gated(state) else without_gate
    gate_state = "to do" if next_rung(state) else "done"
    gate = Phase("gate", gate_state if gated(state) else "done", seconds.get("evaluate gate"), detail=judged)
    tuning = _tuning(state, seconds.get("evaluate tuning"))
    training, evaluation = _training(state, seconds.get("train")), _evaluation(state, seconds)
    if left is not None:
        tuning = tuple(replace(one, expected=left.tuning if one.state != "done" else None) for one in tuning)
        gate = replace(gate, expected=left.gate if gate.state != "done" else None)
        training = replace(training, expected=left.fan_out if training.state != "done" else None)
        evaluation = replace(evaluation, expected=left.evaluation if evaluation.state != "done" else None)
    return (
        *simple,
        *tuning,
        gate,
        training,
        evaluation,
        Phase("compare", "done" if state.outcome and not goes_on_after_refusal(state) else "to do", seconds.get("compare")),
        Phase("register", "done" if state.status == _FINISHED else "to do", seconds.get("register")),
    )


def _tuning(state: StudyState, spent: float | None) -> tuple[Phase, ...]:
    """Return the phase in which recipes are tried; none where the study tunes nothing. Its trainings count as trainings."""
    if state.tuning is None:
        return ()
    methods, done = tuned_methods(planned_methods(state)), chosen(state.tuning)
    detail = f"{len([m for m in methods if m in done])} of {len(methods)} methods have one of {len(state.tuning.recipes)} recipes"
    if refused(state) or set(methods) <= set(done):
        return (Phase("tune", "done", spent, detail=detail),)
    return (Phase("tune", "under way" if state.tuning.steps else "to do", spent, detail=detail),)


def _training(state: StudyState, spent: float | None) -> Phase:
    if state.clustering is None:
        return Phase("train", "to do", spent)
    plan = work_plan(state)
    trained = trained_adapters(state, plan)
    missing = [name for name, spec in plan.specs.items() if name not in trained and not spec.merge_of]
    if not missing or refused(state):
        return Phase("train", "done", spent, detail=counted(len(trained), "adapter"))
    return Phase("train", "under way" if trained else "to do", spent, detail=f"{len(trained)} of {len(plan.specs)} adapters")


def _evaluation(state: StudyState, seconds: Mapping[str, float]) -> Phase:
    answered = seconds.get("evaluate test")
    if state.outcome is not None and not goes_on_after_refusal(state):
        return Phase("evaluate", "done", answered)
    return Phase("evaluate", "to do" if answered is None else "under way", answered)


def against_unified(state: StudyState) -> tuple[str, ...]:
    """Return what is known so far, one sentence each: the gate's verdicts on val, then the comparison on test."""
    metric = METRICS[state.settings.evaluation.headline]
    sentences = [
        f"on val, {v.adapter}: {metric.difference(metric.gain(v.gain))} against unified, {'passed' if v.passed else 'refused'}"
        for v in state.verdicts
    ]
    if state.outcome is None:
        return tuple(sentences)
    for score in state.outcome.scores:
        if score.difference is not None and score.ci_low is not None and score.ci_high is not None:
            mean, low, high = (metric.format(value, signed=True) for value in (score.difference, score.ci_low, score.ci_high))
            sentences.append(f"on test, {score.method}: {mean} against {state.outcome.reference} [{low}, {high}]")
    return tuple(sentences)


def _after_the_end(state: StudyState) -> str:
    """Return what to do with a finished study: serve its champion where it has one, else what would go on."""
    if refused(state):
        return f"The gate refused. To train the rest all the same: {command_to_continue(state.name)}"
    if state.moved is not None and not state.moved.moved:
        return f"Nothing: the refresh is finished, and the champion stays: {state.moved.reason}."
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
        "tune": "Every method tries the same recipes, in rounds of fewer and fewer on more people.",
        "gate": "Unified and one cluster are trained and judged on val; if the cluster is no better, the ladder is tried.",
        "train": "The remaining adapters are trained.",
        "evaluate": "Every method answers everyone's test items.",
        "compare": "The answers are compared.",
        "register": "The models are registered.",
    }
    return words[waiting[0]] if waiting else "The models are registered."
