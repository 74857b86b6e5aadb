"""What is said of a tuned study: by what each method was tuned, on whom, and at which cost."""

from dataclasses import replace
from pathlib import Path

import pytest

from clusterlora.errors import TrainingDiverged
from clusterlora.metadata import Decision, Tuning, TuningRound
from clusterlora.planning.ladder import OWN
from clusterlora.planning.trials import lost_trials, plan_of, trial_step
from clusterlora.planning.tuning import with_step
from clusterlora.planning.work_plan import work_plan
from clusterlora.progress.timeline import phases
from clusterlora.progress.work import remaining_work
from clusterlora.results.report import _settings as settings_of
from clusterlora.results.tuning import cost_sentence, trial_rows, tuning_markdown, tuning_sentence
from clusterlora.settings import ClusteringSettings, Rung, Study
from clusterlora.values import Attempt, Criterion, Verdict
from tasks.status import status_lines
from tests.fast.test_tuning import PER_TOKEN, planned, tuned_to_the_end
from tests.fixtures.comparison import compared, evaluation


@pytest.mark.parametrize("methods", [("merge",), ("baseline", "unified_retrieval"), ("baseline", "swapped_persona"), ("unified", "merge")])
def test_the_cost_counts_all_adapters_that_are_trained_by_what_was_chosen(
    methods: tuple[str, ...], tiny_base_folder: Path, tmp_path: Path
) -> None:
    study = Study(methods=methods, tune=4, seeds=2, clustering=ClusteringSettings(k=2))
    state = tuned_to_the_end(planned(study, (3, 4), tiny_base_folder, tmp_path))
    plan = work_plan(state)
    once = 10 * len({plan.keys[name] for name, spec in plan.specs.items() if not spec.merge_of})
    assert f"times the {once:,} of all adapters" in cost_sentence(state)
    assert cost_sentence(state) in tuning_markdown(state)


def test_the_cost_is_told_where_trials_were_never_trained_as_what_they_start_from_or_their_likes_diverged(
    tiny_base_folder: Path, tmp_path: Path
) -> None:
    state = planned(Study(methods=("unified", "cluster"), tune=8, clustering=ClusteringSettings(k=2)), (8, 9), tiny_base_folder, tmp_path)
    assert state.tuning is not None
    recipes = state.tuning.recipes
    # The first two are alike, and of cluster's recipes those that start from unified are the best.
    state = replace(state, tuning=Tuning((recipes[0], recipes[0], *recipes[2:])))
    state = tuned_to_the_end(state, loss=lambda method, n: -n - 100.0 * (method == "cluster" and recipes[n].init == "unified"))
    assert state.tuning is not None
    steps = [plan_of(state, OWN.name, number) for number in range(1, 1 + len(state.tuning.steps))]
    (start,) = (name for name in steps[3].specs if name.startswith("unified+trial-on-"))
    diverged = [Attempt(f"tuning-{n}", 1, 8, "done", detail=f"diverged: {name}") for n, name in ((1, "unified+trial-1-00"), (4, start))]
    state = replace(state, attempts=tuple(diverged))
    lost = {plan.keys[name] for plan in steps for name in lost_trials(state, plan)}
    assert len(lost) > len(diverged)
    left = tuple(one for one in state.adapters if one.key not in lost)
    assert "times the" in cost_sentence(replace(state, adapters=left))
    kept = set(work_plan(state).keys.values())
    pruned = next(one for one in left if one.spec.is_trial and one.key not in kept)
    assert cost_sentence(replace(state, adapters=tuple(one for one in left if one != pruned))) == ""


def test_a_study_one_of_whose_methods_lost_every_recipe_can_be_read_and_says_the_way_out(tiny_base_folder: Path, tmp_path: Path) -> None:
    state = planned(Study(methods=("unified", "per_persona", "hybrid"), tune=4), (3, 4), tiny_base_folder, tmp_path)
    assert state.tuning is not None
    lost = TuningRound("unified", 2, tuple((n, None) for n in range(4)))
    best = TuningRound("per_persona", 2, tuple((n, float(n)) for n in range(4)))
    state = replace(state, tuning=with_step(state.tuning, [lost, best]))
    assert [phase.state for phase in phases(state) if phase.name == "tune"] == ["under way"]
    assert [row[-2:] for row in trial_rows(state) if row[0] == "unified"] == [("diverged", "")] * 4
    assert remaining_work(state, PER_TOKEN).tuning == ()
    sentence = tuning_sentence(state) or ""
    assert "These methods were tuned by the same 4 recipes" in sentence
    assert "Not tuned: hybrid. All recipes diverged: unified." in sentence
    with pytest.raises(TrainingDiverged, match=r"all 4 recipes .* for unified diverged; run the study under another name .* or without"):
        trial_step(state)


def test_the_sentence_says_on_whom_each_was_tuned_and_what_was_not(tiny_base_folder: Path, tmp_path: Path) -> None:
    methods = ("unified", "cluster", "unified_longer", "prefix")
    state = planned(Study(methods=methods, tune=4, clustering=ClusteringSettings(k=2)), (8, 9), tiny_base_folder, tmp_path)
    before = tuning_sentence(state) or ""
    assert before.startswith("These methods were tuned by the same 4 recipes on val loss: none has its recipe yet.")
    assert "A round" not in before
    after = tuned_to_the_end(state)
    assert after.tuning is not None
    n_people = [one.n_personas for step in after.tuning.steps for one in step]
    sentence = tuning_sentence(after) or ""
    assert sentence.startswith("Each method was tuned")
    assert f"A round was tried on {n_people[0]} of 17 people; adapters of several people, and what these start from, were" in sentence
    assert "hybrid" not in sentence
    assert "unified_longer: unified's recipe at another length, width or prompt, for which it was not tuned." in sentence
    assert "Not tuned" not in sentence
    assert "all recipes" not in sentence.lower()
    prefix = next(clause for clause in sentence.split("; ") if clause.startswith("prefix lr"))
    assert ", length " in prefix
    assert not {"alpha", "dropout", "rank"}.intersection(prefix.split(". ")[0].replace(",", "").split())
    assert {row[5:8] for row in trial_rows(after) if row[0] == "prefix"} == {("-", "-", "-")}


def test_the_report_calls_the_studys_recipe_its_own_where_each_method_is_trained_by_the_best_for_it(
    tiny_base_folder: Path, tmp_path: Path
) -> None:
    study = Study(methods=("unified", "cluster"), tune=4, clustering=ClusteringSettings(k=2))
    state = tuned_to_the_end(planned(study, (8, 9), tiny_base_folder, tmp_path))
    comparison = compared(evaluation({"unified": 0.6, "cluster": 0.7}))
    tuned, untuned = (dict(settings_of(one, work_plan(one), comparison)) for one in (state, replace(state, tuning=None)))
    assert tuned["own recipe"] == untuned["recipe"]
    assert "recipe" not in tuned
    assert tuned["recipes tried"] == "4, the study's own first; a method that is tuned is trained by the best for it"
    rung = "rung of the gate's ladder"
    assert (tuned[rung], untuned[rung]) == ("own, the recipe that was chosen for cluster", "own, the recipe above")
    assert tuned["dialogues per persona"] == "30 train, 10 val, 1 test"
    page = "\n".join(status_lines(state, tmp_path, "finished"))
    assert "- **Own recipe**: " in page
    assert "- **Examples**: 30 train, 10 val, 1 test dialogues per persona" in page


def test_what_a_person_had_retried_is_said_whether_it_was_taken_or_not(tiny_base_folder: Path, tmp_path: Path) -> None:
    study = Study(methods=("unified", "cluster", "random_cluster"), tune=4, clustering=ClusteringSettings(k=2))
    state = tuned_to_the_end(planned(study, (8, 9), tiny_base_folder, tmp_path))
    asked = Rung(name="asked-1", learning_rate=1e-5)
    state = replace(state, decisions=(Decision("retry", asked), Decision("continue")))
    assert "asked-1" not in (tuning_sentence(state) or "")

    def sentence(better: str) -> str:
        gains = {name: 0.1 if name == better else -0.1 for name in ("own", "asked-1")}
        criteria = {name: (Criterion("above_unified", gain, 0.2, False, None, None, ""),) for name, gain in gains.items()}
        verdicts = [Verdict(name, "cluster-00", of, n_personas=8, n_items=8) for name, of in criteria.items()]
        return tuning_sentence(replace(state, verdicts=tuple(verdicts))) or ""

    tried = "By a person's decision cluster alone then tried more on the items that judge it, asked-1; it and its controls are trained by "
    assert tried + "the recipe above." in sentence("own")
    assert tried + "asked-1." in sentence("asked-1")


def test_a_study_of_whose_people_one_is_tried_says_one_person(tiny_base_folder: Path, tmp_path: Path) -> None:
    state = planned(Study(methods=("unified",), tune=2), (1,), tiny_base_folder, tmp_path)
    assert "A round was tried on 1 of 1 person." in (tuning_sentence(tuned_to_the_end(state)) or "")
