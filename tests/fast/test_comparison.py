"""The comparison: recomputed independently, fair to every method, and not fooled by chance."""

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clusterlora.comparison.table import markdown
from clusterlora.errors import BadData, BadSettings
from clusterlora.methods import controls
from clusterlora.values import EvaluationRow
from tests.fixtures.comparison import FIVE, METRIC_DIRECTIONS, compared, cross_fitted, evaluation

HEADLINE = "embedding_similarity"


def test_every_number_agrees_with_an_independent_recomputation():
    rows = evaluation(FIVE)
    comparison = compared(rows)
    frame: Any = pd.DataFrame([{"method": r.method, "persona": r.persona_id, "cluster": r.cluster, **r.scores} for r in rows])
    by_persona = frame.groupby(["persona", "cluster", "method"])[list(METRIC_DIRECTIONS)].mean().reset_index()
    wide = by_persona.pivot(index="persona", columns="method", values="embedding_similarity")
    p_values = {method: stats.wilcoxon(wide[method] - wide["unified"])[1] for method in wide if method != "unified"}
    for result in comparison.methods:
        own = by_persona[by_persona.method == result.method]
        for metric in METRIC_DIRECTIONS:
            assert result.means[metric] == pytest.approx(own[metric].mean())
        assert result.by_cluster == pytest.approx(own.groupby("cluster").embedding_similarity.mean().to_dict())
        assert result.by_persona == pytest.approx(wide[result.method].to_dict())
        assert result.worst_persona_id == wide[result.method].idxmin()
        assert result.worst_persona == pytest.approx(wide[result.method].min())
        assert result.p5 == pytest.approx(wide[result.method].quantile(0.05))
        assert result.mean_low < result.means["embedding_similarity"] < result.mean_high
        if result.method == "unified":
            assert result.vs_reference is None
            continue
        difference = result.vs_reference
        assert difference is not None
        deltas = wide[result.method] - wide["unified"]
        assert difference.mean == pytest.approx(deltas.mean())
        assert difference.ci_low < difference.mean < difference.ci_high
        assert difference.p == pytest.approx(p_values[result.method])
        assert difference.p_holm >= difference.p
        assert difference.win_rate == (deltas > 0).mean()
        assert difference.win_low < difference.win_rate + 1e-12
        assert difference.win_high > difference.win_rate - 1e-12
    assert [result.method for result in comparison.methods] == wide.mean().sort_values(ascending=False).index.tolist()
    assert comparison.oracle == pytest.approx(cross_fitted(rows, list(wide)))
    assert (comparison.n_personas, comparison.n_items, comparison.n_personas_left_out) == (18, 54, 0)
    assert comparison.cluster_sizes == {0: 4, 1: 8, 2: 6}


def test_personas_weigh_the_same_however_many_items_they_have():
    rows = [r for r in evaluation(FIVE) if r.persona_id != "persona_000" or r.item_id.endswith("/0")]
    unified = compared(rows).method("unified")
    assert unified.means["embedding_similarity"] == pytest.approx(np.mean(list(unified.by_persona.values())))


def test_a_method_that_is_really_better_becomes_champion():
    comparison = compared(evaluation(FIVE, (10, 20, 10)))
    assert comparison.champion == "cluster"
    assert comparison.sentence.startswith("cluster beats unified: embedding similarity 8")
    assert "p < 0.001" in comparison.sentence


@pytest.mark.whole
def test_without_any_difference_no_other_method_than_unified_is_champion():
    champions = [
        compared(evaluation(dict.fromkeys(("unified", "cluster", "per_persona", "hybrid"), 0.8), (20,), n_items=3, seed=seed)).champion
        for seed in range(80)
    ]
    assert sum(champion in ("unified", None) for champion in champions) >= 76
    assert champions.count("unified") > 40, "where it is not the lowest of four, by luck"


def test_a_lucky_mean_does_not_make_a_champion():
    comparison = compared(evaluation({"unified": 0.8, "cluster": 0.8}, (6,), seed=1, noise=0.15), floor=None)
    assert comparison.methods[0].method == "cluster"
    assert comparison.champion is None, "unified is the lowest of two"
    assert "No method is shown to beat unified (embedding similarity " in comparison.sentence
    assert "the best other, cluster, differs by +" in comparison.sentence


def test_five_personas_are_too_few_for_a_champion_however_large_the_gain():
    comparison = compared(evaluation({"unified": 0.5, "cluster": 0.8}, (5,)))
    difference = comparison.method("cluster").vs_reference
    assert difference is not None
    assert difference.ci_low > 0
    assert difference.p_holm == 2 / 2**5
    assert comparison.champion is None


def test_a_method_that_answers_like_unified_ties_and_never_wins():
    rows = [r for r in evaluation(FIVE) if r.method == "unified"]
    comparison = compared(rows + [replace(r, method="copy") for r in rows])
    difference = comparison.method("copy").vs_reference
    assert difference is not None
    assert (difference.mean, difference.p, difference.win_rate, difference.tie_rate) == (0, 1, 0, 1)
    assert comparison.champion == "unified"


@pytest.mark.whole
@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(random: Random):
    rows = evaluation(FIVE, (2, 3))
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert compared(shuffled, draws=100) == compared(rows, draws=100)


def test_renaming_personas_changes_no_statistic():
    rows = evaluation(FIVE)
    renamed = [replace(r, persona_id=f"z/{r.persona_id}", item_id=f"y{r.item_id}") for r in rows]
    before, after = compared(rows), compared(renamed)
    assert [m.vs_reference for m in before.methods] == [m.vs_reference for m in after.methods]


def test_when_lower_is_better_the_lowest_wins():
    comparison = compared(evaluation(FIVE, (10, 20, 10)), headline="nll", floor=None)
    cluster = comparison.method("cluster")
    assert comparison.champion == "cluster"
    assert comparison.methods[0].method == "cluster"
    assert cluster.vs_reference is not None
    assert cluster.vs_reference.mean < 0
    assert cluster.vs_reference.win_rate > 0.6
    assert cluster.worst_persona == max(cluster.by_persona.values())
    assert cluster.vs_reference.outcome == "better"
    assert comparison.method("baseline").vs_reference.outcome == "worse"  # pyrefly: ignore[missing-attribute]


def test_the_ceiling_takes_the_best_method_of_each_item_and_bounds_everything():
    comparison = compared(evaluation(FIVE))
    assert comparison.ceiling >= max(comparison.oracle, *(result.means["embedding_similarity"] for result in comparison.methods))
    lower_is_better = compared(evaluation(FIVE), headline="nll", floor=None)
    assert lower_is_better.ceiling <= min(lower_is_better.oracle, *(result.means["nll"] for result in lower_is_better.methods))


def test_the_oracle_is_not_better_than_every_method_by_picking_on_the_items_it_is_scored_on():
    alike = evaluation(
        dict.fromkeys(("selective_routing", "unified", "cluster", "per_persona", "hybrid"), 0.8), (60,), n_items=4, noise=0.15
    )
    comparison = compared(alike)
    means = [result.means["embedding_similarity"] for result in comparison.methods]
    picked_on_the_same_items = np.mean([max(r.by_persona[p] for r in comparison.methods) for p in comparison.cluster_by_persona])
    assert picked_on_the_same_items > max(means) + 0.03
    assert comparison.oracle < max(means) + 0.01, "nothing distinguishes the methods, so nothing can be picked"
    assert comparison.routing is not None
    assert comparison.routing.oracle < max(means) + 0.01
    planted = [
        replace(r, scores={**r.scores, "embedding_similarity": 0.9 if (r.method == "hybrid") == (r.persona_id < "persona_030") else 0.5})
        for r in alike
        if r.method in ("hybrid", "unified")
    ]
    assert compared(planted).oracle == pytest.approx(0.9), "who is served best by what is found where it is so"


def in_dialogues(n_turns: int, *, n_dialogues: int = 4, n_personas: int = 40, luck: float = 0.1) -> list[EvaluationRow]:
    """Rows of methods that are all alike: each is lucky or not with a dialogue, and its turns share that."""
    rng = np.random.default_rng(n_turns)
    methods = ("baseline", "unified", "cluster", "per_persona", "hybrid", "prefix", "merge", "selective_routing")
    return [
        EvaluationRow(m, f"p{p:02d}", p % 4, f"d{d}#{2 * t + 1}", "", "", "", {HEADLINE: 0.7 + of_dialogue + rng.normal(0, 0.02)})
        for p in range(n_personas)
        for d in range(n_dialogues)
        for m in methods
        for of_dialogue in [rng.normal(0, luck)]
        for t in range(n_turns)
    ]


@pytest.mark.parametrize("n_turns", [2, 4])
def test_the_oracle_does_not_pick_by_the_turns_of_a_dialogue_that_it_is_scored_on(n_turns: int) -> None:
    comparison = compared(in_dialogues(n_turns), higher_is_better={HEADLINE: True}, draws=50)
    # The luckiest of eight methods lies 0.07 above the truth for a person; the mean of 40 people has a standard error of 0.008.
    assert comparison.oracle == pytest.approx(0.7, abs=0.035)
    assert comparison.routing is not None
    assert comparison.routing.oracle == pytest.approx(0.7, abs=0.035)
    assert "test dialogue and" not in comparison.oracle_is


def test_no_turn_of_a_dialogue_is_scored_by_what_was_picked_on_another_of_it() -> None:
    # What is right of one dialogue is wrong of the other, so what is picked on either never is.
    right = {"d0#1": "cluster", "d0#3": "cluster", "d0#5": "cluster", "d1#1": "unified"}
    rows = [
        EvaluationRow(m, f"p{p}", 0, item, "", "", "", {HEADLINE: float(m == of_item)})
        for p in range(6)
        for item, of_item in right.items()
        for m in ("unified", "cluster")
    ]
    assert compared(rows, higher_is_better={HEADLINE: True}, draws=50).oracle == 0


def test_the_oracle_is_of_what_can_be_served_and_one_method_alone_is_its_own() -> None:
    rows = evaluation({"baseline": 0.6, "unified": 0.7, "cluster": 0.7})
    without = compared(rows)
    assert compared(rows + evaluation({"random_cluster": 0.95, "swapped_persona": 0.9})).oracle == pytest.approx(without.oracle)
    uneven = [row for row in in_dialogues(3) if row.method == "unified" and not row.item_id.startswith("d1#5")]
    alone = compared(uneven, higher_is_better={HEADLINE: True}, draws=50)
    assert alone.oracle == pytest.approx(alone.methods[0].means[HEADLINE]), "halves of several sizes count by their items"


def test_people_with_one_dialogue_count_with_the_mean_of_the_methods_and_it_is_said() -> None:
    rows = [
        EvaluationRow(m, f"p{p}", 0, f"d{d}#{turn}", "", "", "", {HEADLINE: value})
        for p, n_dialogues in enumerate((1, 1, 2, 2, 2, 2))
        for d in range(n_dialogues)
        for turn in (1, 3)
        for m, value in (("unified", 0.5), ("cluster", 0.9))
    ]
    comparison = compared(rows, higher_is_better={HEADLINE: True}, draws=50)
    assert comparison.oracle == pytest.approx((2 * 0.7 + 4 * 0.9) / 6)
    assert comparison.n_with_one_dialogue == 2
    assert comparison.oracle_is.endswith("; 2 of 6 personas have one test dialogue and count with the mean of the methods")


def test_the_normalised_score_is_0_at_the_floor_and_1_at_the_ceiling():
    comparison = compared(evaluation(FIVE))
    for result in comparison.methods:
        expected = (result.means["embedding_similarity"] - 0.31) / (comparison.ceiling - 0.31)
        assert result.normalised == pytest.approx(expected)
    alone = compared(evaluation({"unified": 0.8}))
    assert alone.methods[0].normalised == pytest.approx(1.0)
    at_the_floor = compared(evaluation({"unified": 0.8}), floor=alone.methods[0].means["embedding_similarity"])
    assert at_the_floor.methods[0].normalised is None, "a scale without length has no positions"
    assert compared(evaluation(FIVE), floor=None).methods[0].normalised is None


@pytest.mark.whole
def test_routing_is_bracketed_by_a_blind_and_a_perfect_choice_among_the_other_methods():
    comparison = compared(evaluation(FIVE))
    others = [result for result in comparison.methods if result.method != "selective_routing"]
    assert comparison.routing is not None
    assert comparison.routing.random == pytest.approx(np.mean([result.means["embedding_similarity"] for result in others]))
    assert comparison.routing.oracle == pytest.approx(cross_fitted(evaluation(FIVE), [result.method for result in others]))
    with_controls = compared(evaluation(FIVE) + evaluation(dict.fromkeys(controls(), 0.95)))
    assert with_controls.routing == comparison.routing, "controls are not among what routing may choose"
    assert compared(evaluation({"unified": 0.8, "cluster": 0.8})).routing is None
    assert compared(evaluation({"selective_routing": 0.8, "unified_longer": 0.9})).routing is None
    assert compared(evaluation({"selective_routing": 0.8})).routing is None


def test_after_a_refused_gate_the_common_personas_are_compared_and_the_sentence_says_so():
    rows = [r for r in evaluation(FIVE, (16, 30, 20)) if r.method != "cluster" or r.cluster == 0]
    comparison = compared(rows)
    assert (comparison.n_personas, comparison.n_personas_left_out, comparison.n_items) == (16, 50, 48)
    assert comparison.cluster_sizes == {0: 16}
    assert comparison.sentence.endswith("Measured on 48 items of 16 personas, the ones of 66 that every method answers.")


def test_one_method_alone_is_reported():
    comparison = compared(evaluation({"baseline": 0.5}))
    assert comparison.champion is None
    assert comparison.reference is None
    assert "baseline is the only method: " in comparison.sentence


@pytest.mark.parametrize("others", [{"baseline": 0.5}, {"per_persona": 0.6, "hybrid": 0.6}, {"random_cluster": 0.5}, {}])
def test_without_unified_no_method_is_champion(others: dict[str, float]):
    comparison = compared(evaluation({"cluster": 0.7, **others}))
    assert comparison.champion is None
    assert comparison.method("cluster").vs_reference is None
    begins = "No champion: unified, which a champion must beat, was not compared; add it to methods, or train and evaluate it. cluster "
    assert comparison.sentence.startswith(begins + ("has the best embedding similarity " if others else "is the only method: "))


def test_the_reference_can_be_another_method():
    comparison = compared(evaluation(FIVE), reference="baseline")
    assert comparison.method("baseline").vs_reference is None
    assert "vs_baseline" in markdown(comparison)


def test_unfair_or_broken_rows_are_refused():
    rows = evaluation(FIVE)
    lacking = [r for r in rows if (r.method, r.item_id) != ("cluster", "persona_002/1")]
    with pytest.raises(
        BadData, match=r"method cluster lacks 1 of 54 items that others answered, first 'persona_002/1' of persona 'persona_002'"
    ):
        compared(lacking)
    with pytest.raises(BadData, match="method baseline answered item 'persona_000/0' of persona 'persona_000' twice"):
        compared([*rows, rows[0]])
    with pytest.raises(BadData, match="method baseline has no nll for item"):
        compared([replace(rows[0], scores={"embedding_similarity": 0.5, "rouge_l": 0.1}), *rows[1:]])
    with pytest.raises(BadData, match="method baseline has nll=nan for item"):
        compared([replace(rows[0], scores={**rows[0].scores, "nll": float("nan")}), *rows[1:]])
    with pytest.raises(BadData, match="'persona_000' is in clusters 3 and 0"):
        compared([replace(rows[0], cluster=3), *rows[1:]])
    with pytest.raises(BadData, match="no persona was answered by all of a, b"):
        compared([replace(rows[0], method="a"), replace(rows[-1], method="b")])
    with pytest.raises(BadData, match="no evaluation rows"):
        compared([])
    with pytest.raises(BadSettings, match="headline metric 'chrf' is not among"):
        compared(rows, headline="chrf")


def test_training_seeds_are_averaged_inside_an_item_before_anything_else():
    first, second = evaluation(FIVE, seed=1), [replace(row, seed=1) for row in evaluation(FIVE, seed=2)]
    once = [row for row in first if row.method == "baseline"] + [row for row in first + second if row.method != "baseline"]
    comparison = compared(once)
    frame = pd.DataFrame(
        [{"method": r.method, "seed": r.seed, "persona": r.persona_id, "s": r.scores["embedding_similarity"]} for r in once]
    )
    for method, own in frame.groupby("method"):
        assert comparison.method(str(method)).means["embedding_similarity"] == pytest.approx(own.s.mean())
    assert comparison.n_items == len([r for r in first if r.method == "baseline"]), "two trainings are not twice the items"
    with pytest.raises(BadData, match="with other training seeds than"):
        compared(once[:-1])
