"""The end of a tuning step: every trial's val loss is recorded, and with it which recipes go on."""

from dataclasses import asdict

import numpy as np

from clusterlora.adapters.stored import stored_folder
from clusterlora.evaluation.select import select_arm
from clusterlora.metadata import Tuning, TuningRound
from clusterlora.planning.ladder import GATED
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.trials import Trial, TrialStep, recipe_tried, trial_step
from clusterlora.planning.tuning import check_left, left, with_step
from clusterlora.planning.work_plan import trained_adapters, work_plan
from clusterlora.ports.run_log import RunLog
from clusterlora.ports.stores import Stores
from clusterlora.ports.tracker import TrialRun
from clusterlora.results.tuning import words_of
from clusterlora.stages.evaluate import scores_of
from clusterlora.stages.keep import expose
from clusterlora.stages.val_dialogues import by_dialogue


def choose_recipes(study_name: str, number: int, stores: Stores, log: RunLog) -> Tuning:
    """Record the val losses of a step whose trials are answered; one that is recorded changes nothing.

    Raises:
        TrainingDiverged: all recipes of a method did.
    """
    state = read_state(study_name, stores)
    step, before = trial_step(state), state.tuning
    assert before is not None, f"study {study_name} tunes nothing"
    if step is None or step.number != number:
        return before
    losses = _losses(state, step, stores)
    rounds = [_round(step, method, losses) for method in dict.fromkeys(trial.method for trial in step.trials)]
    after = with_step(before, rounds)
    stores.tracker.log_trials(study_name, [_run(state, trial, losses[trial], rounds) for trial in step.trials])
    stores.studies.save_metadata(study_name, after)
    state = read_state(study_name, stores)
    check_left(state, [one.method for one in rounds])
    for one in rounds:
        numbers = left(after, one.method)
        kept = words_of(state, one.method, numbers[0]) if len(numbers) == 1 else f"{len(numbers)} go on"
        log.note(f"{one.method}: {len(one.losses)} recipes tried on {one.n_personas} people; {kept}")
    _expose_kept(state, stores)
    return after


def _losses(state: StudyState, step: TrialStep, stores: Stores) -> dict[Trial, float | None]:
    """Return the mean val loss over people of every trial, each person answered by the arm that the method would choose."""
    plan, trained = step.plan, trained_adapters(state, step.plan).keys()
    whole = [trial for trial in step.trials if trained >= {spec.name for spec in trial.plan.adapters}]
    pairs = list(dict.fromkeys((p, arm) for trial in whole for p, arms in trial.plan.arms_by_persona for arm in arms))
    keys = {arm: plan.composition_key(arm) for _, arm in pairs}
    scores = scores_of(state, stores, keys, pairs, "val", "nll")
    of_dialogues = by_dialogue(state, scores)

    def loss(trial: Trial) -> float | None:
        means: list[float] = []
        for p, arms in trial.plan.arms_by_persona:
            chosen = select_arm([of_dialogues[p, arm] for arm in arms], higher_is_better=False, margin_se=trial.plan.margin_se)
            means.append(float(scores[p, arms[chosen]].mean()))
        mean = float(np.mean(means))
        return mean if np.isfinite(mean) else None

    of_whole = {trial: loss(trial) for trial in whole}
    return {trial: of_whole.get(trial) for trial in step.trials}


def _round(step: TrialStep, method: str, losses: dict[Trial, float | None]) -> TuningRound:
    trials = [trial for trial in step.trials if trial.method == method]
    return TuningRound(method, len(trials[0].plan.arms_by_persona), tuple((trial.number, losses[trial]) for trial in trials))


def _run(state: StudyState, trial: Trial, loss: float | None, rounds: list[TuningRound]) -> TrialRun:
    tuning = state.tuning
    assert tuning is not None, f"study {state.name} tunes nothing"
    recipe = asdict(recipe_tried(state, trial.method, trial.number))
    init = tuning.recipes[trial.number].init if trial.method == GATED else "base"
    people = next(one.n_personas for one in rounds if one.method == trial.method)
    return TrialRun(
        name=f"trial {trial.number:02d} · {trial.method}",
        params={"method": trial.method, "trial": trial.number, **recipe, "init": init},
        method=trial.method,
        round=len(tuning.rounds(trial.method)) + 1,
        n_personas=people,
        loss=loss,
    )


def _expose_kept(state: StudyState, stores: Stores) -> None:
    """Copy adapters of the plan that a trial has trained to where a person finds them."""
    plan = work_plan(state)
    for name, adapter in trained_adapters(state, plan).items():
        if adapter.spec.is_trial and not plan.specs[name].is_one_of_many:
            expose(stores, state.name, plan.specs[name], stored_folder(stores, adapter.key))
