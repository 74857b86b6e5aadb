"""Equal tuning: every method tries the same recipes at the same cost, on val alone, and nothing is trained twice."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterlora.config import PRESETS, resolve
from clusterlora.errors import BadSettings
from clusterlora.metadata import ImportedAdapters, MeanTokens, TrialRecipe, Tuning, TuningRound
from clusterlora.method_settings import MergeSettings
from clusterlora.methods import METHODS, controls
from clusterlora.methods.method import StudyView
from clusterlora.planning.ladder import GATED, REFERENCE, rungs
from clusterlora.planning.recipes import draw_recipes
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.training_groups import trial_groups
from clusterlora.planning.trials import Trial, TrialStep, finished, trial_step
from clusterlora.planning.tuning import chosen, in_turn, left, round_people, rounds_of, with_step
from clusterlora.planning.work_plan import WorkPlan, work_plan
from clusterlora.progress.work import remaining_work, train_tokens
from clusterlora.recipe import Recipe, problems
from clusterlora.results.report import _of_first_seed
from clusterlora.results.tuning import cost_sentence, tuning_sentence
from clusterlora.settings import ClusteringSettings, Study, prepared
from clusterlora.values import AdapterSpec, Attempt, Clustering, Criterion, Dataset, Dialogue, Persona, Split, TrainedAdapter, Turn, Verdict
from tests.fast.test_controls import DIFFERENCE, differences
from tests.fixtures.studies import memory_stores

TARGETS = Recipe().target_modules
PER_TOKEN = MeanTokens(dialogue=1.0, prompt=1.0, response=1.0)


def later_is_better(_method: str, number: int) -> float:
    return 100.0 - number


def earlier_is_better(_method: str, number: int) -> float:
    return 100.0 + number


def planned(study: Study, sizes: tuple[int, ...], base: Path, home: Path) -> StudyState:
    """Return the state of a study of clusters of these sizes, with recipes drawn and nothing trained."""
    turns = (Turn("user", "dim"), Turn("assistant", "dimmed"))
    splits: tuple[tuple[Split, int], ...] = (("train", 30), ("val", 10), ("test", 1))
    dialogues = tuple(Dialogue(f"{split}-{n}", turns, split=split) for split, count in splits for n in range(count))
    people = [f"p{number:03d}" for number in range(sum(sizes))]
    stores = memory_stores(home)
    study = replace(study, model=replace(study.model, base=str(base)))
    stores.studies.create_study(prepared(study, "float32"))
    stores.studies.save_dataset(study.name, Dataset(tuple(Persona(p, None, dialogues) for p in people)))
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    members = tuple(tuple(people[end - size : end]) for end, size in zip(ends, sizes, strict=True))
    stores.studies.save_clustering(study.name, Clustering("responses", members))
    stores.studies.save_metadata(study.name, Tuning(draw_recipes(study, TARGETS)))
    return read_state(study.name, stores)


def tuned_to_the_end(state: StudyState, loss: Callable[[str, int], float] = later_is_better) -> StudyState:
    """Return the state of a study whose recipes that were drawn last were chosen, and whose adapters are all trained on ten tokens.

    Args:
        loss: given a method and the number of a recipe, in the place of one that is less the later a recipe was drawn.
    """
    plans: list[WorkPlan] = []
    while step := trial_step(state, in_turn(state, whole=True)):
        assert state.tuning is not None
        plans.append(step.plan)
        state = replace(state, tuning=with_step(state.tuning, rounds(step, loss)))
    plans.append(work_plan(state))
    by_key = {
        plan.keys[name]: TrainedAdapter(plan.keys[name], name, spec, 1, 0 if spec.merge_of else 10, 1.0, 1.0, 0.5, 9)
        for plan in plans
        for name, spec in plan.specs.items()
    }
    return replace(state, adapters=tuple(by_key.values()))


def own(trial: Trial) -> tuple[AdapterSpec, ...]:
    """Return the adapters that are trained for a trial, without those that it builds on."""
    return tuple(spec for spec in trial.plan.adapters if spec.is_trial and (trial.method == REFERENCE or spec.label != REFERENCE))


def steps_of(state: StudyState, *, first_is_best: bool = False) -> list[TrialStep]:
    """Return the steps of a whole tuning in which the recipes that were drawn last, or those that were drawn first, are the best."""
    steps: list[TrialStep] = []
    while step := trial_step(state, in_turn(state, whole=True)):
        steps.append(step)
        assert state.tuning is not None
        state = replace(state, tuning=with_step(state.tuning, rounds(step, earlier_is_better if first_is_best else later_is_better)))
    return steps


def rounds(step: TrialStep, loss: Callable[[str, int], float] = later_is_better) -> list[TuningRound]:
    methods = dict.fromkeys(trial.method for trial in step.trials)
    return [
        TuningRound(
            method,
            len(next(t for t in step.trials if t.method == method).plan.arms_by_persona),
            tuple((t.number, loss(method, t.number)) for t in step.trials if t.method == method),
        )
        for method in methods
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_method_of_a_preset_tries_the_same_recipes_as_often(preset: str, tiny_base_folder: Path, tmp_path: Path) -> None:
    study = replace(resolve(preset, overrides={"tune": 8}), clustering=ClusteringSettings(k=3))
    state = planned(study, (3, 6, 5), tiny_base_folder, tmp_path)
    tried: dict[str, list[Counter[TrialRecipe]]] = {}
    n_people: dict[str, list[int]] = {}
    assert state.tuning is not None
    for step in steps_of(state):
        for method in dict.fromkeys(trial.method for trial in step.trials):
            trials = [trial for trial in step.trials if trial.method == method]
            tried.setdefault(method, []).append(Counter(state.tuning.recipes[trial.number] for trial in trials))
            n_people.setdefault(method, []).append(len(trials[0].plan.arms_by_persona))
    with_adapters = [m for m, plan in work_plan(state).methods.items() if any(not spec.merge_of for spec in plan.adapters)]
    assert set(tried) == {recipe for method in with_adapters for recipe in METHODS[method].recipes}
    first, *others = tried.values()
    assert first[0] == Counter(state.tuning.recipes)
    assert all(other == first for other in others)
    assert len({tuple(n) for n in n_people.values()}) == 1


@pytest.mark.whole
@pytest.mark.parametrize(("n_recipes", "sizes"), [(32, (16, 52, 25, 35, 72)), (32, (9, 14, 17)), (8, (4, 6)), (64, (30, 70))])
def test_tuning_costs_a_method_one_training_per_round(
    n_recipes: int, sizes: tuple[int, ...], tiny_base_folder: Path, tmp_path: Path
) -> None:
    study = Study(methods=("unified", "cluster", "per_persona", "hybrid", "prefix"), tune=n_recipes, clustering=ClusteringSettings(k=2))
    state = planned(study, sizes, tiny_base_folder, tmp_path)
    rounds = rounds_of(n_recipes)
    once = sum(sizes) * 30 * study.recipe.epochs
    cost: dict[str, float] = {}
    for step in steps_of(state):
        for trial in step.trials:
            tokens = sum(train_tokens(spec, state.dataset.by_id(), PER_TOKEN) for spec in own(trial))
            cost[trial.method] = cost.get(trial.method, 0.0) + tokens / once
    assert set(cost) == {"unified", "cluster", "per_persona", "hybrid", "prefix"}
    # Rounds take whole people, so each may cost a person's training by every recipe more.
    slack = sum(n * 2 * study.recipe.epochs for n in rounds) / (sum(sizes) * study.recipe.epochs)
    assert all(len(rounds) - 0.5 <= spent <= len(rounds) + slack for spent in cost.values())
    if sum(sizes) >= n_recipes:
        assert all(spent + 1 <= 5 for spent in cost.values())


@pytest.mark.parametrize("method", [name for name in METHODS if name != "last_champion"])
def test_a_method_says_by_whose_recipes_its_adapters_are_trained(method: str) -> None:
    people = ("ana", "ben", "cleo", "dan")
    clusters = (people[:2], people[2:])
    # Of the others nothing is imported: these are trained here.
    imported = ImportedAdapters(((0, "a0"),), "a2", (("ana", "of-ana"), ("cleo", "of-cleo")))

    def adapters(changed: str | None) -> tuple[AdapterSpec, ...]:
        recipes = {changed: replace(Recipe(), epochs=9)} if changed else {}
        own = recipes.get(GATED, Recipe())
        view = StudyView(people, clusters, Recipe(), own, REFERENCE, {}, MergeSettings(), imported, tuned=recipes)
        return METHODS[method].plan(view).adapters

    tuned = [name for name, one in METHODS.items() if name in one.recipes]
    assert {name for name in tuned if adapters(name) != adapters(None)} == set(METHODS[method].recipes)


def test_a_control_is_trained_by_the_recipe_of_what_it_controls(tiny_base_folder: Path, tmp_path: Path) -> None:
    methods = ("unified", "cluster", "per_persona", *controls())
    state = planned(Study(methods=methods, tune=8, clustering=ClusteringSettings(k=3)), (3, 4, 5), tiny_base_folder, tmp_path)
    tuning = state.tuning
    assert tuning is not None
    # Another recipe for each, one of them a warm start.
    warm = next(number for number, one in enumerate(tuning.recipes) if number and one.init == "unified")
    best = {"unified": 3 if warm != 3 else 4, "cluster": warm, "per_persona": 5 if warm != 5 else 6}
    step = tuple(TuningRound(m, 1, ((number, 1.0), *((n, 2.0) for n in range(3) if n != number))) for m, number in best.items())
    plan = work_plan(replace(state, tuning=with_step(tuning, step)))
    assert plan.cluster_init == "unified"
    assert plan.specs["unified"].recipe == tuning.recipes[best["unified"]].recipe
    assert plan.specs["persona-0000"].recipe == tuning.recipes[best["per_persona"]].recipe
    assert plan.specs["cluster-00"].recipe.learning_rate == tuning.recipes[warm].recipe.learning_rate
    assert plan.specs["cluster-00"].recipe.rank == plan.specs["unified"].recipe.rank
    for control, (subject, allowed) in DIFFERENCE.items():
        if subject in methods:
            changed = differences(plan.methods[control], plan.methods[subject])
            assert changed == allowed or (control == "random_cluster" and not changed), control


@given(n=st.integers(2, 64), seed=st.integers(0, 5), dropout=st.sampled_from((0.0, 0.05, 0.9)), rank=st.sampled_from((1, 8, 256)))
@settings(max_examples=30)
def test_recipes_are_the_studys_own_and_others_around_it_whenever_they_are_drawn(n: int, seed: int, dropout: float, rank: int) -> None:
    own = Recipe(seed=seed, dropout=dropout, rank=rank, alpha=2.0 * rank)
    study = Study(recipe=own, tune=n, cluster_init="unified")
    drawn = draw_recipes(study, TARGETS)
    assert drawn == draw_recipes(study, TARGETS)
    assert len(drawn) == n
    assert drawn[0] == TrialRecipe(own, "unified")
    for one in drawn:
        assert not list(problems(one.recipe))
        assert own.learning_rate / 4.2 <= one.recipe.learning_rate <= 4.2 * own.learning_rate
        assert 0.45 <= one.recipe.alpha / one.recipe.rank / 2 <= 2.1
        assert bool(one.recipe.dropout) <= bool(dropout)
    if n >= 16:
        fields = ("learning_rate", "epochs", "target_modules", "alpha")
        assert all(len({getattr(one.recipe, field) for one in drawn}) > 1 for field in fields)
        assert {one.init for one in drawn} == {"base", "unified"}


def test_recipes_stay_within_the_bounds_of_settings() -> None:
    own = Recipe(learning_rate=9.0, epochs=9000, rank=200, alpha=9000, dropout=0.9)
    assert not [words for one in draw_recipes(Study(recipe=own, tune=32), TARGETS) for words in problems(one.recipe)]


def test_ranks_leave_room_for_an_adapter_as_wide_as_all_clusters() -> None:
    study = Study(
        recipe=Recipe(rank=16, alpha=32), tune=32, methods=("unified", "cluster", "unified_wide"), clustering=ClusteringSettings(k=8)
    )
    assert max(one.recipe.rank for one in draw_recipes(study, TARGETS)) == 32


def test_the_best_quarter_goes_on_and_a_recipe_that_diverged_never() -> None:
    tuning = Tuning(tuple(TrialRecipe(Recipe(epochs=n + 1), "base") for n in range(8)))
    assert left(tuning, "unified") == tuple(range(8))
    first = TuningRound("unified", 2, tuple((n, None if n < 6 else 9.0 - n) for n in range(8)))
    tuning = with_step(tuning, [first])
    assert left(tuning, "unified") == (7, 6)
    assert not chosen(tuning)
    tuning = with_step(tuning, [TuningRound("unified", 8, ((6, 1.0), (7, None)))])
    assert chosen(tuning) == {"unified": tuning.recipes[6]}
    lost = Tuning(tuning.recipes, ((TuningRound("unified", 2, tuple((n, None) for n in range(8))),),))
    assert left(lost, "unified") == ()
    assert not chosen(lost)


def test_a_study_that_tunes_climbs_no_ladder(tiny_base_folder: Path, tmp_path: Path) -> None:
    study = Study(methods=("unified", "cluster"), clustering=ClusteringSettings(k=2))
    names = [rung.name for rung in rungs(planned(replace(study, tune=4), (3, 4), tiny_base_folder, tmp_path))]
    assert names == ["own"]


def test_only_what_the_gate_judges_is_tuned_before_it(tiny_base_folder: Path, tmp_path: Path) -> None:
    study = Study(methods=("unified", "per_persona", "cluster"), tune=4, clustering=ClusteringSettings(k=2))
    state = planned(study, (8, 9), tiny_base_folder, tmp_path)
    assert in_turn(state) == ("unified",)
    assert in_turn(state, whole=True) == ("unified", "per_persona")
    passed = Verdict("own", "cluster-00", (), n_personas=8, n_items=8)
    assert in_turn(replace(state, verdicts=(passed,))) == ("unified", "per_persona")
    gain = Criterion("above_unified", -0.1, 0.0, False, None, None, "")
    refused = replace(passed, criteria=(gain,))
    assert in_turn(replace(state, verdicts=(refused,))) == ()


def learnt_from(plan: WorkPlan, name: str) -> set[str]:
    """Return everybody whose dialogues shaped an adapter, by way of what it builds on too."""
    spec = plan.specs[name]
    return set(spec.persona_ids).union(*(learnt_from(plan, needed) for needed in spec.needs))


@pytest.mark.parametrize("tune", [4, 8])
def test_all_trials_of_adapters_of_several_people_have_learnt_from_the_rounds_people_alone(
    tune: int, tiny_base_folder: Path, tmp_path: Path
) -> None:
    methods = ("unified", "cluster", "hybrid", "cluster_hybrid")
    state = planned(Study(methods=methods, tune=tune, clustering=ClusteringSettings(k=3)), (6, 20, 14), tiny_base_folder, tmp_path)
    steps = steps_of(state)
    warm = 0
    for step in steps:
        for trial in step.trials:
            people = {p for p, _ in trial.plan.arms_by_persona}
            assert own(trial)
            for spec in own(trial):
                assert spec.trial == trial.number
                if spec.scope != "person":
                    assert learnt_from(step.plan, spec.name) <= people
                    warm += spec.init_from is not None and len(people) < len(state.dataset.ids)
                else:
                    assert learnt_from(step.plan, spec.name) == set(state.dataset.ids)
    assert warm
    # The start of a first round is a trial of unified that has been trained.
    keys = {step.plan.keys[spec.name] for step in steps[:1] for trial in step.trials if trial.method == REFERENCE for spec in own(trial)}
    second = next(step for step in steps if any(trial.method == "cluster" for trial in step.trials))
    starts = {spec.name for trial in second.trials for spec in trial.plan.adapters if spec not in own(trial) and spec.is_trial}
    assert len(starts) == 1
    assert tune != 4 or {second.plan.keys[name] for name in starts} <= keys
    # What is expected counts it once.
    counted: set[str] = set()
    foreseen = steps_of(state, first_is_best=True)
    for (expected, _), step in zip(remaining_work(state, PER_TOKEN).tuning, foreseen, strict=True):
        trained = {step.plan.keys[spec.name]: spec for spec in step.plan.specs.values() if spec.is_trial}
        assert sum(expected) == sum(
            train_tokens(spec, state.dataset.by_id(), PER_TOKEN) for key, spec in trained.items() if key not in counted
        )
        counted |= trained.keys()
    sentence = tuning_sentence(tuned_to_the_end(state)) or ""
    assert "adapters of several people, and what these start from, were trained on these alone" in sentence
    assert "hybrid's residuals lie over the study's own unified." in sentence


def test_a_trial_loses_with_what_it_starts_from(tiny_base_folder: Path, tmp_path: Path) -> None:
    state = planned(Study(methods=("unified", "cluster"), tune=4, clustering=ClusteringSettings(k=2)), (8, 9), tiny_base_folder, tmp_path)
    step = steps_of(state)[-1]
    starts = {spec.name for trial in step.trials for spec in trial.plan.adapters if spec not in own(trial)}
    attempt = Attempt("tuning-2", 1, 8, "done", detail=f"diverged: {', '.join(starts)}")
    warm = {spec.name for spec in step.plan.specs.values() if spec.init_from in starts}
    assert warm
    assert finished(replace(state, attempts=(attempt,)), step.plan) == starts | warm


def test_a_method_that_names_no_recipe_is_refused_before_anything_is_tried(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = planned(Study(methods=("unified", "prefix"), tune=4), (3, 4), tiny_base_folder, tmp_path)
    monkeypatch.setitem(METHODS, "prefix", replace(METHODS["prefix"], recipes=()))
    with pytest.raises(BadSettings, match="method prefix trains adapters and names no recipe to tune"):
        trial_step(state)


def test_tuning_nothing_is_refused() -> None:
    with pytest.raises(BadSettings, match="tune = 4: no method of this study trains adapters"):
        resolve("quick", overrides={"tune": 4, "methods": ["baseline", "few_shot"]})


def test_a_trial_that_another_study_trained_under_another_name_is_a_trial(tiny_base_folder: Path, tmp_path: Path) -> None:
    study = Study(methods=("unified", "per_persona"), tune=4, clustering=ClusteringSettings(k=2))
    state = tuned_to_the_end(planned(study, (3, 4), tiny_base_folder, tmp_path))
    plan = work_plan(state)
    # As if an untuned study had trained its own recipe before, which was not chosen here.
    others = tuple(
        replace(one, name=one.spec.label, spec=replace(one.spec, name=one.spec.label, variant_of=None, rung=None, trial=None))
        if one.spec.trial == 0
        else one
        for one in state.adapters
    )
    assert others != state.adapters
    linked = replace(state, adapters=others)
    assert cost_sentence(linked) == cost_sentence(state)
    assert {name: one.key for name, one in _of_first_seed(linked, plan).items()} == {name: plan.keys[name] for name in plan.specs}
    refused = replace(others[0], key="0" * 16, name="persona-0001")
    shown = _of_first_seed(replace(linked, adapters=(*others, refused)), plan)
    assert shown["persona-0001"].key == plan.keys["persona-0001"]


def test_partly_imported_adapters_are_tuned_and_whole_ones_are_not(tiny_base_folder: Path, tmp_path: Path) -> None:
    study = Study(methods=("imported_cluster", "imported_per_persona"), tune=4, clustering=ClusteringSettings(k=2))
    state = planned(study, (3, 4), tiny_base_folder, tmp_path)
    people = state.dataset.ids
    partly = replace(state, imported=ImportedAdapters(((0, "a0"),), None, ((people[0], "a1"),)))
    step = trial_step(partly)
    assert step is not None
    assert {trial.method for trial in step.trials} == {"unified", "per_persona"}
    whole = replace(state, imported=ImportedAdapters(((0, "a0"), (1, "a1")), None, tuple((p, "a2") for p in people)))
    assert trial_step(whole) is None


def test_trials_with_the_same_weights_are_trained_once_and_diverge_together(tiny_base_folder: Path, tmp_path: Path) -> None:
    state = planned(Study(methods=("unified",), tune=4), (3, 4), tiny_base_folder, tmp_path)
    assert state.tuning is not None
    first, *others = state.tuning.recipes
    state = replace(state, tuning=Tuning((first, first, *others[1:])))
    step = trial_step(state)
    assert step is not None
    names = [name for wave in trial_groups(state, step) for group in wave for name in group.adapters]
    same, keys = {name for name in step.plan.specs if name.endswith(("-00", "-01"))}, {step.plan.keys[name] for name in names}
    assert len(names) == len(keys) == 3
    attempt = Attempt("tuning-1", 1, 8, "done", detail=f"diverged: {min(same)}")
    assert finished(replace(state, attempts=(attempt,)), step.plan) == same


@pytest.mark.parametrize(("sizes", "n_recipes"), [((25, 25, 25, 25), 32), ((16, 52, 25, 35, 72), 32), ((2, 2, 60), 8)])
def test_every_cluster_has_somebody_in_the_first_round(
    sizes: tuple[int, ...], n_recipes: int, tiny_base_folder: Path, tmp_path: Path
) -> None:
    state = planned(Study(methods=("unified", "cluster"), tune=n_recipes), sizes, tiny_base_folder, tmp_path)
    people = round_people(state, "cluster")
    assert state.clustering is not None
    assert all(set(members) & set(people) for members in state.clustering.members)
    assert len(people) < sum(sizes) / 3
