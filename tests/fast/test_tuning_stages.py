"""A tuned study from trials to the report: on val alone, resumed after a kill, and with trials that diverge."""

import json
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from clusterlora.engine import active_job
from clusterlora.errors import BadSettings
from clusterlora.metadata import Tuning, TuningRound
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.training_groups import groups_of, trial_groups
from clusterlora.planning.trials import finished, recipe_tried, trial_step
from clusterlora.planning.tuning import chosen, in_turn, with_step
from clusterlora.planning.work_plan import trained_adapters, work_plan
from clusterlora.ports.stores import Stores
from clusterlora.progress.timeline import phases
from clusterlora.progress.work import remaining_work
from clusterlora.recipe import MOST_LEARNING_RATE, Recipe
from clusterlora.requests import EvaluationRequest
from clusterlora.results.tuning import trial_rows, tuning_sentence
from clusterlora.settings import Study
from clusterlora.stages.adapter_folders import write_adapter_folders
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.tuning import choose_recipes
from clusterlora.values import Attempt
from tests.fast.test_tuning import PER_TOKEN
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import LOG, run_gate, run_rest, run_tuning, state_of, train_groups
from tests.fixtures.studies import copy_of_stores, poisoned, seven_people


def tuned_study(base: Path) -> Study:
    """Return a study of four people whose methods try five recipes each."""
    study = seven_people(base)
    return replace(
        study,
        name="tuned",
        methods=("unified", "per_persona", "cluster", "hybrid", "swapped_persona"),
        data=replace(study.data, synthetic=replace(study.data.synthetic, cluster_sizes=(2, 2))),
        clustering=replace(study.clustering, sizes=(2, 2)),
        tune=5,
    )


@pytest.fixture
def tuned(tiny_base_folder: Path) -> Study:
    return tuned_study(tiny_base_folder)


@pytest.fixture
def tuned_stores(tuned: Study, tmp_path: Path) -> Stores:
    """Return stores with the tuned study, compared; it is trained once per session."""

    def run_to_the_end(stores: Stores) -> None:
        begin(tuned, stores)
        run_tuning(tuned, stores)
        run_gate(tuned, stores)
        run_tuning(tuned, stores)
        run_rest(tuned, stores)
        compare_study(tuned.name, stores, LOG)

    return copy_of_stores("tuned-study", run_to_the_end, tmp_path)


def begin(study: Study, stores: Stores) -> None:
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)


def recipes_of(state: StudyState) -> dict[str, Recipe]:
    return {method: one.recipe for method, one in chosen(state.tuning).items()}


def test_every_method_is_trained_by_the_recipe_with_the_lowest_val_loss(tuned: Study, tuned_stores: Stores) -> None:
    state = state_of(tuned, tuned_stores)
    assert state.tuning is not None
    assert set(recipes_of(state)) == {"unified", "per_persona", "cluster", "hybrid"}
    for method, recipe in recipes_of(state).items():
        last = state.tuning.rounds(method)[-1]
        best = min((loss, number) for number, loss in last.losses if loss is not None)[1]
        assert state.tuning.recipes[best].recipe == recipe
        assert len(state.tuning.rounds(method)[0].losses) == 5
    plan = work_plan(state)
    assert set(trained_adapters(state, plan)) == set(plan.specs)
    assert plan.specs["persona-0000"].recipe == recipes_of(state)["per_persona"]
    assert [phase.state for phase in phases(state) if phase.name == "tune"] == ["done"]
    assert remaining_work(state, PER_TOKEN).tuning == ()


def test_nothing_is_trained_twice_and_a_persons_trial_becomes_its_adapter(tuned: Study, tuned_stores: Stores) -> None:
    state = state_of(tuned, tuned_stores)
    runs = [run for run in tracker(tuned_stores).runs.values() if "training_group" in run.tags]
    assert sum(run.params["adapters"] for run in runs) == len(state.adapters)
    mine = trained_adapters(state, work_plan(state))
    reused = [name for name, adapter in mine.items() if adapter.spec.is_trial]
    assert any(name.startswith("persona-") for name in reused)
    written = write_adapter_folders(tuned.name, tuned_stores.folder(tuned.name) / "models", tuned_stores)
    assert {one.name for one in written} == {name for name in mine if work_plan(state).specs[name].is_one_of_many}
    assert len(written) >= 4


def tracker(stores: Stores) -> MemoryTracker:
    assert isinstance(stores.tracker, MemoryTracker)
    return stores.tracker


def test_every_trial_is_a_run_with_its_parameters_and_its_val_loss(tuned: Study, tuned_stores: Stores) -> None:
    trials = [run for run in tracker(tuned_stores).runs.values() if run.name.startswith("trial ")]
    assert Counter(run.params["method"] for run in trials) == dict.fromkeys(("unified", "per_persona", "cluster", "hybrid"), 5)
    assert all(run.values["val/loss"] > 0 and run.status == "FINISHED" for run in trials)
    state = state_of(tuned, tuned_stores)
    hybrid = next(run for run in trials if run.name == "trial 03 · hybrid")
    assert hybrid.params["rank"] == recipe_tried(state, "hybrid", 3).rank
    assert hybrid.params["learning_rate"] == recipe_tried(state, "hybrid", 3).learning_rate


def test_the_sentence_and_the_tables_say_what_each_method_was_tuned_by(tuned: Study, tuned_stores: Stores) -> None:
    state = state_of(tuned, tuned_stores)
    results = tuned_stores.folder(tuned.name) / "results"
    sentence = tuning_sentence(state)
    assert sentence is not None
    assert "tuned by the same 5 recipes on val loss" in sentence
    assert f"per_persona lr {recipes_of(state)['per_persona'].learning_rate:g}" in sentence
    assert sentence in (results / "summary.md").read_text()
    assert json.loads((results / "summary.json").read_text())["tuning"] == sentence
    rows = trial_rows(state)
    assert Counter(row[0] for row in rows) == dict.fromkeys(("unified", "per_persona", "cluster", "hybrid"), 5)
    assert Counter(row[0] for row in rows if row[-1] == "chosen") == dict.fromkeys(("unified", "per_persona", "cluster", "hybrid"), 1)
    assert "recipes that were tried" in (results / "report.html").read_text()


def test_a_study_that_climbs_the_ladder_untuned_says_that_clusters_alone_were_tuned(seven: Study, finished_stores: Stores) -> None:
    state = state_of(seven, finished_stores)
    assert tuning_sentence(replace(state, verdicts=state.verdicts[:1])) is None
    sentence = tuning_sentence(replace(state, verdicts=(*state.verdicts, replace(state.verdicts[0], rung="warm-start"))))
    assert sentence is not None
    assert "Tuning was not equal: cluster alone tried 2 configurations" in sentence


@pytest.mark.whole
def test_recipes_are_chosen_without_any_test_answer(
    tuned: Study, tuned_stores: Stores, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = replace(tuned, methods=("unified",))
    from clusterlora.stages import prepare

    fitted = prepare.fitted_dataset
    monkeypatch.setattr(prepare, "fitted_dataset", lambda *args: (poisoned(fitted(*args)[0]), fitted(*args)[1]))
    begin(study, stores)
    run_tuning(study, stores)
    expected, found = state_of(tuned, tuned_stores), state_of(study, stores)
    assert found.dataset != expected.dataset
    assert expected.tuning is not None
    assert found.tuning is not None
    for method in study.methods:
        assert found.tuning.rounds(method) == expected.tuning.rounds(method)


@pytest.mark.whole
def test_a_step_that_was_killed_trains_what_is_missing_and_a_recorded_one_changes_nothing(tuned: Study, stores: Stores) -> None:
    study = replace(tuned, methods=("unified", "per_persona"))
    begin(study, stores)
    state = state_of(study, stores)
    step = trial_step(state)
    assert step is not None
    ((first, *others),) = trial_groups(state, step)
    train_groups(study, stores, [first])
    state = state_of(study, stores)
    assert trial_step(state) == step
    left_over = list(chain.from_iterable(trial_groups(state, step)))
    assert {name for group in left_over for name in group.adapters} == {name for group in others for name in group.adapters}
    train_groups(study, stores, left_over)
    evaluate(EvaluationRequest(study_name=study.name, part="tuning", step=step.number), stores, LOG)
    recorded = choose_recipes(study.name, step.number, stores, LOG)
    # A worker that comes late, and the step recorded again.
    assert evaluate(EvaluationRequest(study_name=study.name, part="tuning", step=step.number), stores, LOG) == 0
    assert choose_recipes(study.name, step.number, stores, LOG) == recorded
    assert len(recorded.steps) == 1


@pytest.mark.whole
def test_a_trial_that_diverges_loses_and_is_not_tried_again(tuned: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    study = replace(tuned, methods=("unified", "per_persona"), recipe=replace(tuned.recipe, learning_rate=5e-3))
    begin(study, stores)
    tuning = stores.studies.metadata(study.name, Tuning)
    assert tuning is not None
    wild = replace(tuning.recipes[2], recipe=replace(tuning.recipes[2].recipe, learning_rate=MOST_LEARNING_RATE))
    scheduled = active_job.learning_rate
    monkeypatch.setattr(
        active_job,
        "learning_rate",
        lambda recipe, *steps: 1e38 if recipe.learning_rate == MOST_LEARNING_RATE else scheduled(recipe, *steps),
    )
    stores.studies.save_metadata(study.name, replace(tuning, recipes=(*tuning.recipes[:2], wild, *tuning.recipes[3:])))
    state = state_of(study, stores)
    step = trial_step(state)
    assert step is not None
    train_groups(study, stores, chain.from_iterable(trial_groups(state, step)))
    state = state_of(study, stores)
    assert trial_groups(state, step) == ()
    assert finished(state, step.plan) == set(step.plan.specs)
    evaluate(EvaluationRequest(study_name=study.name, part="tuning", step=step.number), stores, LOG)
    recorded = choose_recipes(study.name, step.number, stores, LOG)
    assert all(dict(one.losses)[2] is None for one in recorded.steps[0])
    assert tracker(stores).runs[f"{study.name}-trial 02 · unified"].status == "FAILED"
    assert [row[-2] for row in trial_rows(read_state(study.name, stores)) if row[:2] == ("unified", "2")] == ["diverged"]


@pytest.mark.whole
def test_what_builds_on_a_trial_that_diverged_in_an_earlier_wave_of_its_step_is_not_trained(tiny_base_folder: Path, stores: Stores) -> None:
    study = replace(seven_people(tiny_base_folder), methods=("unified", "cluster"), tune=8)
    begin(study, stores)
    while True:
        state = state_of(study, stores)
        step = trial_step(state, in_turn(state, whole=True))
        assert step is not None
        assert state.tuning is not None
        starts = [name for name in step.plan.specs if "trial-on" in name and step.number >= 4]
        if starts:
            break
        # Of cluster's recipes those that start from unified are the best.
        recipes, recorded = state.tuning.recipes, list[TuningRound]()
        for method in dict.fromkeys(trial.method for trial in step.trials):
            tried = [trial.number for trial in step.trials if trial.method == method]
            losses = ((n, n - 100.0 * (method == "cluster" and recipes[n].init == "unified")) for n in tried)
            recorded.append(TuningRound(method, 0, tuple(losses)))
        stores.studies.save_metadata(study.name, with_step(state.tuning, recorded))
    first, *later = trial_groups(state, step)
    assert later
    group = next(group for group in first if set(starts) <= set(group.adapters))
    stores.studies.open_attempt(study.name, Attempt(group.name, 1, 2, "running"))
    stores.studies.close_attempt(study.name, group.name, 1, state="done", detail=f"diverged: {', '.join(starts)}")
    train_groups(study, stores, chain.from_iterable(later))
    state = state_of(study, stores)
    warm = {spec.name for spec in step.plan.specs.values() if spec.init_from in starts}
    assert warm
    assert not warm & trained_adapters(state, step.plan).keys()


def test_adapters_are_not_trained_by_hand_before_their_recipe_is_chosen(tuned: Study, stores: Stores) -> None:
    begin(tuned, stores)
    state = state_of(tuned, stores)
    groups = list(chain.from_iterable(groups_of(state, work_plan(state), ("unified",))))
    with pytest.raises(BadSettings, match=r"unified is not tuned yet; run it whole: clusterlora study run --name tuned"):
        train_groups(tuned, stores, groups)


def test_the_work_before_a_tuned_study_counts_every_round(tuned: Study, stores: Stores) -> None:
    begin(tuned, stores)
    state = state_of(tuned, stores)
    steps = remaining_work(state, PER_TOKEN).tuning
    once = 7 * 3 * tuned.recipe.epochs
    # Unified and per_persona, then what builds on unified: each twice, on whole people, some of whom a first round has trained on.
    assert len(steps) == 4
    assert all(once * 0.4 <= sum(tokens) <= 2 * once * 2 for tokens, _ in steps)
    assert all(answering.n_likelihoods for _, answering in steps)
