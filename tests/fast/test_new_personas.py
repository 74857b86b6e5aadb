"""New personas: which are held out, what is trained without them, and that choices depend on train dialogues only."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.comparison.new_personas import DIALOGUES, NewPersonas, Scores, new_personas
from clusterlora.comparison.new_personas_words import markdown, off, sentence
from clusterlora.config import resolve
from clusterlora.errors import counted
from clusterlora.method_settings import AssignmentSettings, MergeSettings
from clusterlora.methods.held_out import held_out
from clusterlora.methods.method import StudyView
from clusterlora.planning.ladder import rungs
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.report import figures
from clusterlora.requests import EvaluationRequest
from clusterlora.results.new_personas import new_personas as curve_of
from clusterlora.settings import (
    ClusteringSettings,
    DataSettings,
    EvaluationSettings,
    GateSettings,
    ModelSettings,
    Rung,
    Study,
    SyntheticSettings,
)
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.register import register_models
from clusterlora.values import Criterion, Verdict
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import LOG, plan_of, run_rest, state_of, train_named
from tests.fixtures.studies import copy_of_stores, memory_stores, poisoned


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Average over a fifth of the random orders: what a test plants is larger than what the other four fifths would even out."""
    monkeypatch.setattr("clusterlora.comparison.new_personas.DRAWS", 10)


def measured(
    gain: float, *, seed: int, n_personas: int = 30, n_items: int = 20, noise: float = 0.3
) -> tuple[Scores, Scores, dict[str, int]]:
    """Return losses of train dialogues, test scores and clusters of people whose own cluster is better than unified by `gain`."""
    rng = np.random.default_rng(seed)
    clusters = {f"p{number}": number % 3 for number in range(30)}

    def table(persona_id: str, sign: float) -> np.ndarray:
        truth = np.zeros(4)
        truth[clusters[persona_id] + 1] = sign * gain
        return 1.0 + truth + rng.normal(0, 0.3, size=(20, 4))

    return {p: table(p, -1) for p in clusters}, {p: table(p, 1) for p in clusters}, clusters


def each_its_own(scores: Scores) -> dict[str, np.ndarray]:
    """Return the dialogues of items that are dialogues of their own."""
    return {p: np.arange(len(its)) for p, its in scores.items()}


@cache
def curve(gain: float, *, seed: int, poison: bool = False) -> NewPersonas:
    losses, scores, clusters = measured(gain, seed=seed)
    if poison:
        scores = {p: -its for p, its in scores.items()}
    tested = {"embedding_similarity": scores, "nll": {p: -its for p, its in scores.items()}}
    rng = np.random.default_rng(0)
    dialogues = each_its_own(scores)
    return new_personas(losses, tested, dialogues, clusters, metric="embedding_similarity", higher_is_better=True, draws=400, rng=rng)


@pytest.mark.whole
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_more_dialogues_find_the_better_cluster_more_often_and_one_finds_it_only_without_a_margin(seed: int) -> None:
    results = curve(0.3, seed=seed)
    assert [o.n_dialogues for o in results.chosen] == [o.n_dialogues for o in results.nearest] == list(DIALOGUES)
    assert results.chosen[0].leave == results.chosen[0].headline.mean == results.chosen[0].headline.high == 0
    assert results.nearest[0].headline.low > 0
    gains = [o.headline.mean for o in results.chosen]
    assert gains == sorted(gains)
    assert results.chosen[-1].headline.low > 0
    assert results.own.headline.mean == pytest.approx(0.3, abs=0.08)
    assert results.chosen[-1].headline.mean < results.own.headline.mean
    assert results.oracle is not None
    assert results.oracle.headline.mean == pytest.approx(results.own.headline.mean, abs=0.1), "picked on other items than it is scored on"
    assert results.own.nll.mean == results.own.headline.mean, "nll is the negative of the score here, and a gain is positive in both"
    into_own = results.chosen[-1].own_cluster
    assert into_own is not None
    assert into_own > 0.8


@pytest.mark.whole
def test_without_a_gain_by_clusters_no_gain_is_claimed() -> None:
    curves = [curve(0.0, seed=seed) for seed in range(10)]
    assert sum(one.chosen[-1].headline.low > 0 for one in curves) <= 2
    assert abs(np.mean([one.oracle.headline.mean for one in curves if one.oracle])) < 0.02, "nor does the oracle find any"
    text = sentence(curves[5])
    assert text.startswith("For people the adapters never saw, choosing between the clusters and unified is not shown to differ")
    assert "beats" not in text
    assert "by it everybody stays with unified" in text
    assert "so there is nothing shown that choosing could find" in text


@pytest.mark.whole
def test_the_sentence_follows_from_the_numbers() -> None:
    results = curve(0.4, seed=4)
    text = sentence(results)
    assert "choosing between the clusters and unified beats unified" in text
    assert "nothing" not in text
    best = results.chosen[-1].headline
    assert f"by 3 dialogues ({100 * results.chosen[1].headline.mean:+.2f} points [" in text
    assert f"10 dialogues ({100 * best.mean:+.2f} points [{100 * best.low:+.2f}, {100 * best.high:+.2f}], " in text
    assert "is worse than unified by 3 dialogues" in sentence(replace(results, chosen=curve(0.4, seed=4, poison=True).chosen))
    assert markdown(results).count("\n| ") == 1 + 2 * len(DIALOGUES) + 2


@pytest.mark.whole
def test_choices_do_not_see_test_scores() -> None:
    clean, poisoned = curve(0.3, seed=6), curve(0.3, seed=6, poison=True)
    for ours, theirs in zip((*clean.chosen, *clean.nearest), (*poisoned.chosen, *poisoned.nearest), strict=True):
        assert (ours.leave, ours.own_cluster) == (theirs.leave, theirs.own_cluster)
    assert clean.chosen[-1].headline.mean == pytest.approx(-poisoned.chosen[-1].headline.mean)


def test_the_oracle_does_not_pick_by_the_turns_of_a_dialogue_that_it_is_scored_on() -> None:
    losses, _, clusters = measured(0.0, seed=1)
    rng, dialogues = np.random.default_rng(2), {p: np.array([0, 0, 0, 1]) for p in clusters}
    # What is right of one dialogue is wrong of the other, so what is picked on either gains nothing.
    scores = {p: np.array([[0.0, 1, 0, 0]] * 3 + [[0.0, 0, 1, 0]]) for p in clusters}
    tested = {"embedding_similarity": scores, "nll": {p: -its for p, its in scores.items()}}
    results = new_personas(losses, tested, dialogues, clusters, metric="embedding_similarity", higher_is_better=True, draws=200, rng=rng)
    assert results.oracle is not None
    assert (results.oracle.headline.mean, results.oracle.leave) == (0, 1)


@pytest.mark.parametrize("n_alone", [0, 1, 20, 30])
def test_people_with_one_test_dialogue_are_not_in_the_row_of_the_oracle_and_are_counted(n_alone: int) -> None:
    losses, scores, clusters = measured(0.5, seed=1)
    alone = tuple(clusters)[:n_alone]
    dialogues = {p: np.zeros(20, dtype=np.int64) if p in alone else np.arange(20) for p in clusters}
    tested = {"embedding_similarity": scores, "nll": {p: -its for p, its in scores.items()}}
    rng = np.random.default_rng(0)
    results = new_personas(losses, tested, dialogues, clusters, metric="embedding_similarity", higher_is_better=True, draws=200, rng=rng)
    text = markdown(results)
    if n_alone == 30:
        assert results.oracle is None
        assert "Nobody has two test dialogues" in text
        assert "best on half" not in text.split("Nobody")[0]
        return
    assert results.oracle is not None
    assert results.oracle.n_personas == 30 - n_alone
    assert results.oracle.headline.mean > 0.3, "their own cluster gains 0.5"
    assert ("not in the last row" in text) == (n_alone > 0)
    assert n_alone != 20 or "20 of them have one test dialogue and are not in the last row." in text


@pytest.mark.parametrize("n_many", [1, 5, 6])
def test_a_few_people_with_many_dialogues_give_no_verdict_by_so_many(n_many: int) -> None:
    losses, scores, clusters = measured(0.5, seed=1)
    losses = {p: its if number < n_many else its[:4] for number, (p, its) in enumerate(losses.items())}
    tested = {"embedding_similarity": scores, "nll": {p: -its for p, its in scores.items()}}
    rng, dialogues = np.random.default_rng(0), each_its_own(scores)
    results = new_personas(losses, tested, dialogues, clusters, metric="embedding_similarity", higher_is_better=True, draws=200, rng=rng)
    assert [o.n_personas for o in results.chosen] == [30, 30, n_many, n_many]
    verdict = sentence(results).partition(". ")[0]
    assert "beats unified by 3 dialogues (+" in verdict
    assert (" 5 dialogues (+" in verdict, " 10 dialogues (+" in verdict) == (n_many == 6, n_many == 6)
    few = f"There is no verdict by 5 dialogues ({counted(n_many, 'persona')}), 10 dialogues ({counted(n_many, 'persona')}): it takes 6"
    assert (few in sentence(results)) == (n_many < 6)


@pytest.mark.parametrize(("n_personas", "n_items"), [(5, 20), (6, 1)])
def test_too_few_people_or_items_to_compare_methods_give_no_verdict_on_new_people(n_personas: int, n_items: int) -> None:
    losses, scores, clusters = measured(0.9, seed=1)
    people = tuple(clusters)[:n_personas]
    scores = {p: scores[p][:n_items] for p in people}
    results = new_personas(
        {p: losses[p] for p in people},
        {"embedding_similarity": scores, "nll": {p: -its for p, its in scores.items()}},
        each_its_own(scores),
        clusters,
        metric="embedding_similarity",
        higher_is_better=True,
        draws=200,
        rng=np.random.default_rng(0),
    )
    assert results.own.headline.low > 0
    people_and_items = f"{n_personas} personas and {n_personas * n_items} items"
    assert sentence(results) == (
        f"No verdict on people the adapters never saw, as {people_and_items} are too few: it takes 6 personas and 12 items."
    )


def test_a_persona_counts_only_up_to_its_number_of_dialogues() -> None:
    losses, scores, clusters = measured(0.3, seed=1)
    losses = {p: its[:4] if p == "p0" else its for p, its in losses.items()}
    tested = {"embedding_similarity": scores, "nll": scores}
    rng = np.random.default_rng(0)
    dialogues = each_its_own(scores)
    results = new_personas(losses, tested, dialogues, clusters, metric="embedding_similarity", higher_is_better=True, draws=200, rng=rng)
    assert [o.n_personas for o in results.chosen] == [30, 30, 29, 29]
    assert [o.n_personas for o in results.nearest] == [30, 30, 29, 29]
    assert results.own.n_personas == 30


def test_the_figure_has_both_rules_with_intervals_and_their_baselines() -> None:
    results = curve(0.3, seed=1)
    drawn = figures.new_personas(results)["data"]
    assert [trace["name"] for trace in drawn] == ["margin of 1 standard error", "no margin", "unified", "their cluster in the study"]
    assert drawn[0]["y"] == [100 * o.headline.mean for o in results.chosen]
    assert drawn[3]["y"][0] == 100 * results.own.headline.mean


def view(members: tuple[tuple[str, ...], ...]) -> StudyView:
    people = tuple(p for ids in members for p in ids)
    return StudyView(people, members, Recipe(), Recipe(epochs=6), "unified", {}, MergeSettings())


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.floats(0.05, 0.5), st.integers(0, 9))
def test_some_personas_of_every_cluster_are_held_out_and_some_are_kept(sizes: list[int], share: float, seed: int) -> None:
    members = tuple(tuple(f"{k}-{n}" for n in range(size)) for k, size in enumerate(sizes))
    plan = held_out(view(members), share, seed)
    if max(sizes) == 1:
        assert plan is None
        return
    assert plan is not None
    spared = dict(plan.arms_by_persona).keys()
    unified, *clusters = plan.adapters
    assert set(unified.persona_ids) | spared == {p for ids in members for p in ids}
    assert not set(unified.persona_ids) & spared
    for ids, adapter in zip(members, clusters, strict=True):
        assert set(adapter.persona_ids) == set(ids) - spared
        assert adapter.persona_ids
        assert len(ids) == 1 or set(ids) & spared
        assert adapter.init_from == unified.name
        assert adapter.recipe.epochs == 6
    alone = held_out(view(members[:2]), share, seed)
    of_two = spared & {*members[0], *members[1]}
    assert dict(alone.arms_by_persona if alone else ()).keys() == of_two, "who is spared depends on nobody else"
    assert held_out(view(members[:1]), share, seed) is None, "one cluster is unified under another name"


@pytest.fixture
def study(tiny_base_folder: Path) -> Study:
    """Nine people in two clusters, of whom one each is held out."""
    return Study(
        name="small",
        methods=("unified", "cluster"),
        data=DataSettings(train=2, val=1, test=1, synthetic=SyntheticSettings(cluster_sizes=(4, 5), dialogues=5)),
        model=ModelSettings(base=str(tiny_base_folder)),
        recipe=Recipe(rank=2, epochs=1, learning_rate=5e-3),
        clustering=ClusteringSettings(k=2, sizes=(4, 5)),
        gate=GateSettings(worst_persona=None, share_improved=0.0, ladder=(Rung(name="warm-start", init="unified"),), on_failure="continue"),
        assignment=AssignmentSettings(held_out_share=0.25),
        evaluation=EvaluationSettings(max_new_tokens=2, bootstrap_draws=100),
    )


def run(study: Study, stores: Stores) -> None:
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    run_rest(study, stores)


@pytest.fixture
def evaluated_stores(study: Study, tmp_path: Path) -> Stores:
    """Return stores with the study of nine people, trained and evaluated once for the whole session."""
    return copy_of_stores("nine-people", lambda stores: run(study, stores), tmp_path)


def own_gain_from(file: Path) -> float:
    """Return the gain in nats of the study's own cluster over unified, worked out from the rows alone."""
    table = pd.read_csv(file)
    test = table[table["split"] == "test"]
    means = test.pivot_table(index=["persona_id", "cluster"], columns="adapter", values="nll", aggfunc="mean")
    return fmean(
        means.loc[(persona_id, cluster), "heldout-unified"] - means.loc[(persona_id, cluster), f"heldout-cluster-{cluster:02d}"]
        for persona_id, cluster in means.index
    )


@pytest.mark.whole
def test_a_study_measures_new_people_beside_its_methods_and_changes_none_of_them(
    study: Study, evaluated_stores: Stores, tmp_path: Path
) -> None:
    stores = evaluated_stores
    comparison = compare_study(study.name, stores, LOG)
    register_models(study.name, stores, LOG)
    trained = {adapter.name: adapter for adapter in stores.studies.adapters(study.name)}
    assert {"heldout-unified", "heldout-cluster-00", "heldout-cluster-01"} < trained.keys()
    plan = plan_of(study, stores).held_out
    assert plan is not None
    assert {len(ids) for ids in (trained[f"heldout-cluster-0{k}"].spec.persona_ids for k in (0, 1))} == {3, 4}
    spared = dict(plan.arms_by_persona).keys()
    assert not spared & set(trained["heldout-unified"].spec.persona_ids)
    assert (stores.folder(study.name) / "models" / "held_out" / "heldout_unified" / "adapter_model.safetensors").is_file()
    assert isinstance(stores.tracker, MemoryTracker)
    assert not [name for name in stores.tracker.models if "heldout" in name], "they are for measuring, not for serving"

    measured_curve = curve_of(state_of(study, stores), plan_of(study, stores), stores)
    assert measured_curve is not None
    assert (measured_curve.n_personas, measured_curve.n_clusters) == (2, 2)
    results = stores.folder(study.name) / "results"
    assert own_gain_from(results / "new_personas.csv") == pytest.approx(measured_curve.own.nll.mean)
    assert sentence(measured_curve) in (results / "summary.md").read_text(encoding="utf-8")
    assert 'section id="new-persona"' in (results / "report.html").read_text(encoding="utf-8")
    assert evaluate(EvaluationRequest(study_name=study.name), stores, LOG) == 0

    other = memory_stores(tmp_path / "other")
    without = replace(study, assignment=AssignmentSettings())
    run(without, other)
    alone = compare_study(study.name, other, LOG)
    assert [r.method for r in alone.methods] == [r.method for r in comparison.methods]
    assert alone.method("cluster").means["nll"] == pytest.approx(comparison.method("cluster").means["nll"])
    assert plan_of(without, other).keys.items() < plan_of(study, stores).keys.items()
    assert curve_of(state_of(without, other), plan_of(without, other), other) is None
    assert "## A new persona" not in (other.folder(study.name) / "results" / "summary.md").read_text(encoding="utf-8")
    assert "assignment.held_out_share=0.2" in (other.folder(study.name) / "results" / "report.html").read_text(encoding="utf-8")


@pytest.mark.whole
def test_poisoned_test_answers_change_scores_and_no_choice(
    study: Study, evaluated_stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, other = evaluated_stores, memory_stores(tmp_path / "other")
    clean = stores.studies.dataset(study.name)
    monkeypatch.setattr("clusterlora.stages.base_checks.load", lambda _settings, _fit, _left: poisoned(clean))
    run(study, other)
    ours, theirs = (
        curve_of(state_of(study, stores), plan_of(study, stores), stores),
        curve_of(state_of(study, other), plan_of(study, other), other),
    )
    assert ours is not None
    assert theirs is not None
    for one, two in zip((*ours.chosen, *ours.nearest), (*theirs.chosen, *theirs.nearest), strict=True):
        assert (one.leave, one.own_cluster) == (two.leave, two.own_cluster)
    assert ours.own.nll != theirs.own.nll, "the poison did not reach the scores, so this test would prove nothing"


@pytest.mark.whole
def test_after_a_refused_gate_nothing_is_measured_and_the_report_says_so(study: Study, evaluated_stores: Stores) -> None:
    stores = evaluated_stores
    strict = replace(study, name="strict", gate=replace(study.gate, ladder=(), mean_similarity=1.0, on_failure="stop"))
    prepare_study(strict, stores, LOG)
    cluster_study(strict.name, stores, LOG)
    train_named(strict, stores, ("unified", "cluster-00"))
    refusal = Criterion("above_unified", -0.1, 0.0, False, None, None, "worse")
    stores.studies.save_verdict(strict.name, Verdict("own", "cluster-00", (refusal,), 4, 8))
    run(strict, stores)
    compare_study(strict.name, stores, LOG)
    assert curve_of(state_of(strict, stores), plan_of(strict, stores), stores) is None
    assert off(0.25) in (stores.folder(strict.name) / "results" / "report.html").read_text(encoding="utf-8")
    assert off(0.25) != off(None)


@pytest.mark.whole
def test_a_rung_gives_the_clusters_held_out_names_of_their_own_and_unified_stays(study: Study, stores: Stores) -> None:
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    own, warm = (plan_of(study, stores, rung).held_out for rung in rungs(state_of(study, stores)))
    assert own is not None
    assert warm is not None
    assert [a.name for a in own.adapters] == ["heldout-unified", "heldout-cluster-00", "heldout-cluster-01"]
    assert [a.name for a in warm.adapters] == ["heldout-unified", "heldout-cluster-00+warm-start", "heldout-cluster-01+warm-start"]
    assert {a.init_from for a in warm.adapters[1:]} == {"heldout-unified"}


def test_the_presets_of_the_mission_measure_it_and_the_small_ones_do_not() -> None:
    shares = {name: resolve(name).assignment.held_out_share for name in ("mission", "all", "demo", "quick")}
    assert shares == {"mission": 0.2, "all": 0.2, "demo": None, "quick": None}
