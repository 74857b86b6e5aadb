"""The trials of a study that tunes: from the recipes in turn to adapters, which are trained and answered with like all others."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from clusterlora.adapters.cache_key import cache_keys
from clusterlora.errors import BadSettings
from clusterlora.metadata import ImportedAdapters, TrialRecipe, Tuning
from clusterlora.methods import METHODS
from clusterlora.methods.method import NOTHING_IMPORTED
from clusterlora.planning.ladder import OWN, REFERENCE, rung_by_name
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.tuning import check_left, chosen, in_turn, left, round_people, tuned_methods
from clusterlora.planning.work_plan import WorkPlan, answer_settings, study_view, trained_adapters, with_variants, work_plan
from clusterlora.recipe import Recipe
from clusterlora.requests import TrainingGroup
from clusterlora.settings import PreparedStudy
from clusterlora.values import AdapterSpec, Attempt, Clustering, Dataset, MethodPlan

DIVERGED = "diverged: "
"""How the detail of an attempt begins whose trials have no finite loss; their names follow."""
_FOLDER = "trials"


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe as one method tries it, on the people of a round. `plan` has its adapters, and who answers whom with them."""

    method: str
    number: int
    plan: MethodPlan


@dataclass(frozen=True, slots=True)
class TrialStep:
    """The trials that are due, and the plan that trains them and what they build on; steps are counted from 1."""

    number: int
    trials: tuple[Trial, ...]
    plan: WorkPlan


def trial_step(state: StudyState, methods: Iterable[str] | None = None) -> TrialStep | None:
    """Return the next step: a round of each of these methods, by default of those in turn; None when there is none.

    Raises:
        BadSettings: a method trains adapters by no recipe that is tuned.
        TrainingDiverged: all recipes of a method did.
    """
    methods = tuple(in_turn(state) if methods is None else methods)
    if not methods or state.tuning is None or state.clustering is None:
        return None
    from clusterlora.models.base import base_revision

    _refuse_untuned(state)
    check_left(state, methods)
    tries = tuple((m, left(state.tuning, m), round_people(state, m)) for m in methods)
    return _step(
        state.settings,
        state.dataset,
        state.clustering,
        base_revision(state.settings.model.base),
        state.imported or NOTHING_IMPORTED,
        state.tuning,
        tries,
    )


def forget_steps() -> None:
    """Drop the steps that this process keeps, with the data that they are of: they are planned again when they are needed."""
    _step.cache_clear()


@lru_cache(maxsize=16)
def _step(
    study: PreparedStudy,
    dataset: Dataset,
    clustering: Clustering,
    revision: str,
    imported: ImportedAdapters,
    tuning: Tuning,
    tries: tuple[tuple[str, tuple[int, ...], tuple[str, ...]], ...],
) -> TrialStep:
    done = chosen(tuning)
    unified = METHODS[REFERENCE].plan(study_view(study, clustering, imported, done, dataset.ids)).adapters[0]
    trials: list[Trial] = []
    for method, numbers, people in tries:
        there = set(people)
        members = tuple(kept for ids in clustering.members if (kept := tuple(p for p in ids if p in there)))
        among = replace(clustering, members=members)
        persona_ids = tuple(p for p in dataset.ids if p in there)
        round_number = len(tuning.rounds(method)) + 1
        for number in sorted(numbers):
            recipes: Mapping[str, TrialRecipe] = {**done, method: tuning.recipes[number]}
            plan = METHODS[method].plan(study_view(study, among, imported, recipes, persona_ids))
            start = _start(plan, unified, tuning)
            adapters = [
                start
                if start is not None and spec.name == REFERENCE
                else replace(spec, rung=f"trial-{round_number}-{number:02d}", trial=number, folder=_FOLDER)
                for spec in plan.adapters
            ]
            trials.append(Trial(method, number, with_variants(plan, adapters)))
    specs = {spec.name: spec for trial in trials for spec in trial.plan.adapters}
    keys = cache_keys(tuple(specs.values()), dataset, base_revision=revision, model=study.model)
    number = len(tuning.steps) + 1
    plans = {f"{trial.method}-{trial.number:02d}": trial.plan for trial in trials}
    answers = answer_settings(study, dataset, revision)
    return TrialStep(number, tuple(trials), WorkPlan(OWN, (plans,), specs, dict(keys), answers, step=number))


def _start(plan: MethodPlan, unified: AdapterSpec, tuning: Tuning) -> AdapterSpec | None:
    """Return the unified adapter that a trial builds on; None where it builds on none.

    Adapters of several people build on one of the round's people: all trials of a round have then learnt from the same people, whatever
    they start from. Adapters of one person are the study's own, and so is what is under them.
    """
    start = next((spec for spec in plan.adapters if spec.name == REFERENCE), None)
    if plan.method == REFERENCE or start is None:
        return None
    is_personal = all(spec.scope == "person" for spec in plan.adapters if spec != start)
    if is_personal or start.persona_ids == unified.persona_ids:
        return unified
    return replace(start, rung=f"trial-on-{len(start.persona_ids)}", trial=left(tuning, REFERENCE)[0], folder=_FOLDER)


def recipe_tried(state: StudyState, method: str, number: int) -> Recipe:
    """Return what a method makes of a recipe that is tried: residuals and prefixes have another rank, a warm start has its start's form."""
    assert state.tuning is not None, f"study {state.name} tunes nothing"
    first = state.dataset.ids[:1]
    recipes = {**chosen(state.tuning), method: state.tuning.recipes[number]}
    view = study_view(state.settings, Clustering("", (first,)), state.imported or NOTHING_IMPORTED, recipes, first)
    return METHODS[method].plan(view).adapters[-1].recipe


def plan_of(state: StudyState, rung: str, step: int | None) -> WorkPlan:
    """Return the plan of a step of the tuning, or where there is none, of a rung of the ladder.

    Raises:
        UnknownName: there is no such rung.
        BadSettings: the step is neither done nor due.
    """
    if step is None or state.tuning is None:
        return work_plan(state, rung_by_name(state, rung))
    before = step - 1
    earlier = replace(state, tuning=Tuning(state.tuning.recipes, state.tuning.steps[:before]))
    recorded = tuple(one.method for one in state.tuning.steps[before]) if before < len(state.tuning.steps) else None
    due = trial_step(earlier, recorded)
    if due is None or due.number != step:
        raise BadSettings(f"study {state.name} has no step {step} of its tuning to do; run the study again")
    return due.plan


def trial_keys(state: StudyState) -> frozenset[str]:
    """Return the keys of the adapters that were trained for the trials of the steps that are done, by whatever study.

    Not every one is called a trial: what another study has trained keeps its name.
    """
    return frozenset(plan.keys[name] for plan in _plans_of_steps(state) for name, spec in plan.specs.items() if spec.is_trial)


def trials_were_pruned(state: StudyState) -> bool:
    """Return whether adapters of trials that are done are gone, so that nobody can say what all of them together took."""
    recorded = {adapter.key for adapter in state.adapters}
    return any(
        spec.is_trial and name not in lost and plan.keys[name] not in recorded
        for plan in _plans_of_steps(state)
        for lost in [lost_trials(state, plan)]
        for name, spec in plan.specs.items()
    )


def _plans_of_steps(state: StudyState) -> list[WorkPlan]:
    """Return the plans of the steps that are done."""
    return [plan_of(state, OWN.name, number) for number in range(1, 1 + len(state.tuning.steps if state.tuning else ()))]


def diverged(attempts: Iterable[Attempt]) -> frozenset[str]:
    """Return the names of the trials' adapters whose training diverged."""
    details = (attempt.detail for attempt in attempts if attempt.detail.startswith(DIVERGED))
    return frozenset(name for detail in details for name in detail.removeprefix(DIVERGED).split(", "))


def finished(state: StudyState, plan: WorkPlan) -> set[str]:
    """Return the adapters of a plan that need no training: those that are trained, and trials that are lost."""
    return lost_trials(state, plan).union(trained_adapters(state, plan))


def lost_trials(state: StudyState, plan: WorkPlan) -> set[str]:
    """Return the trials of a plan that diverged or build on one that did."""
    # Two names may stand for one set of weights.
    keys = {plan.keys[name] for name in diverged(state.attempts) if name in plan.keys}
    lost: set[str] = set()
    for name in plan.with_needs(plan.specs):
        if plan.keys[name] in keys or lost.intersection(plan.specs[name].needs):
            lost.add(name)
    return lost


def check_tuned(state: StudyState, group: TrainingGroup) -> None:
    """Check that the recipes of a group's adapters are chosen, where the study tunes.

    Raises:
        BadSettings: one is not, as a step is run by hand.
    """
    if state.tuning is None or state.clustering is None or group.step is not None:
        return
    waiting = [m for m in tuned_methods(m for m in group.methods if m in METHODS) if m not in chosen(state.tuning)]
    if waiting:
        raise BadSettings(
            f"study {state.name} tunes every method (tune = {state.settings.tune}), and {', '.join(waiting)} is not tuned yet; "
            f"run it whole: clusterlora study run --name {state.name}"
        )


def _refuse_untuned(state: StudyState) -> None:
    """Raise BadSettings for a method that trains adapters and says by whose recipe it does, as its budget would differ from all others'."""
    for name, plan in work_plan(state).methods.items():
        if not METHODS[name].recipes and any(not (spec.imported or spec.merge_of) for spec in plan.adapters):
            raise BadSettings(
                f"method {name} trains adapters and names no recipe to tune; say recipes=({name!r},) in METHODS and train by "
                f"view.recipe_of({name!r}), or leave tune out"
            )
