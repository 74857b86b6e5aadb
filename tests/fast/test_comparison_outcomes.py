"""Outcomes of a comparison in words: better, worse, equivalent or undecided, contrasts with controls, and what is claimed."""

import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from clusterlora.comparison.compare import compare_methods
from clusterlora.comparison.result import PairedDifference
from clusterlora.comparison.scores import paired_scores
from clusterlora.comparison.sentence import claims_personalisation, heading
from clusterlora.comparison.table import console, markdown
from clusterlora.errors import BadData
from clusterlora.evaluation.statistics import holm
from clusterlora.methods import controls
from clusterlora.values import EvaluationRow
from tests.fixtures.comparison import FIVE, compared, difference, evaluation

DIFFERENCE = PairedDifference(
    mean=0.0,
    ci_low=0.0,
    ci_high=0.0,
    p=1.0,
    p_holm=1.0,
    win_rate=0.0,
    win_low=0.0,
    win_high=0.0,
    tie_rate=1.0,
    outcome="equivalent",
    detectable=None,
    margin=0.01,
    robust_low=None,
    robust_high=None,
    by_cluster={0: 0.0},
)


@pytest.mark.whole
def test_a_contrast_has_one_of_three_outcomes_and_an_undecided_one_names_its_detectable_difference():
    means = {"unified": 0.80, "cluster": 0.84, "per_persona": 0.75, "hybrid": 0.80, "few_shot": 0.81}
    few = compared(evaluation(means, (7, 7), n_items=2, noise=0.03))
    many = compared(evaluation(means | {"few_shot": 0.80}, (100, 100), n_items=8, noise=0.03))
    for comparison in (few, many):
        assert (difference(comparison, "cluster").outcome, difference(comparison, "per_persona").outcome) == ("better", "worse")
        assert (
            f"Shown to be worse than unified: per_persona ({100 * difference(comparison, 'per_persona').mean:+.2f})." in comparison.sentence
        )
    assert difference(few, "hybrid").outcome == "undecided"
    assert difference(many, "hybrid").outcome == difference(many, "few_shot").outcome == "equivalent"
    strict = compared(evaluation(means, (7, 7), n_items=2, noise=0.03), margin=0.5)
    assert difference(strict, "hybrid").outcome == "equivalent", "within a margin of 50 points"
    for comparison, outcome in ((few, "undecided (≥"), (many, "equivalent")):
        assert outcome in next(line for line in markdown(comparison).splitlines() if line.startswith("| hybrid"))


def test_a_method_that_is_worse_is_called_worse_where_no_method_wins():
    comparison = compared(evaluation({"unified": 0.80, "cluster": 0.74, "per_persona": 0.70, "hybrid": 0.80}, (20, 20)))
    assert comparison.champion == "unified"
    assert "the best other, hybrid, differs by" in comparison.sentence
    assert "Shown to be worse than unified: cluster (-" in comparison.sentence
    alone = compared(evaluation({"unified": 0.80, "cluster": 0.74}, (20, 20))).sentence
    assert "the best other, cluster, differs by -" in alone
    assert ": shown to be worse." in alone


@pytest.mark.whole
def test_a_difference_as_large_as_the_margin_is_called_equivalent_at_most_one_time_in_twenty():
    """The other method is worse by the margin; small samples rarely show that, and must not deny it either."""
    rng = np.random.default_rng(3)
    outcomes = []
    for _ in range(150):
        gains = rng.normal(-0.02, 0.05, 12).tolist()
        rows = [
            EvaluationRow(
                method, f"p{p:02d}", p % 2, f"p{p:02d}/0", "", "", "", {"embedding_similarity": 0.7 + gain * (method == "cluster")}
            )
            for p, gain in enumerate(gains)
            for method in ("unified", "cluster")
        ]
        comparison = compare_methods(
            rows, headline="embedding_similarity", higher_is_better={"embedding_similarity": True}, draws=200, rng=rng, margin=0.02
        )
        outcomes.append(difference(comparison, "cluster").outcome)
    assert outcomes.count("equivalent") <= stats.binom.ppf(0.999, 150, 0.05)


@pytest.mark.whole
def test_a_study_that_is_too_small_says_which_difference_it_shows_four_times_in_five():
    comparison = compared(evaluation({"unified": 0.8, "cluster": 0.8, "hybrid": 0.8}, (20,), n_items=3))
    shown = difference(comparison, "cluster").detectable
    assert shown is not None
    assert f"show a difference of {100 * shown:.2f} points or more four times in five" in comparison.sentence
    hits = [
        difference(
            compared(evaluation({"unified": 0.7, "cluster": 0.7 + shown, "hybrid": 0.7}, (20,), n_items=3, seed=seed), draws=200), "cluster"
        ).outcome
        for seed in range(60)
    ]
    assert 0.6 <= np.mean([outcome == "better" for outcome in hits]) <= 0.97
    six = compared(evaluation({"baseline": 0.3, "unified": 0.5, "cluster": 0.8, "hybrid": 0.5}, (6,)))
    assert difference(six, "cluster").detectable is None
    assert "not told apart, as no difference could be shown with 6 personas" in six.sentence


def test_a_control_or_the_base_model_is_never_champion_however_good():
    rows = evaluation({"baseline": 0.95, "unified": 0.7, "cluster": 0.75, "random_cluster": 0.9, "unified_longer": 0.9}, (20, 20))
    comparison = compared(rows)
    assert comparison.champion is None
    assert "No champion: cluster (" in comparison.sentence
    assert "baseline, which cannot be champion (+" in comparison.sentence
    assert "random_cluster, which cannot be champion (+" in comparison.sentence
    assert compared([r for r in rows if r.method != "baseline"]).champion == "cluster"
    assert compared([r for r in rows if r.method != "unified"]).champion is None, "without a reference the base model wins nothing either"
    with pytest.raises(BadData, match="controls alone were answered"):
        compared([r for r in rows if r.method == "random_cluster"])


@pytest.mark.whole
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 50))
def test_base_model_and_controls_do_not_cost_the_methods_any_power(seed: int):
    rows = evaluation(FIVE | dict.fromkeys(controls(), 0.79), (4, 5), seed=seed)
    alone = compared([r for r in rows if r.method not in (*controls(), "baseline")], draws=100)
    beside = compared(rows, draws=100)
    for method in ("cluster", "per_persona", "selective_routing"):
        assert difference(beside, method).p_holm == difference(alone, method).p_holm
    others = [difference(beside, method) for method in (*controls(), "baseline")]
    assert [d.p_holm for d in others] == pytest.approx(holm(np.array([d.p for d in others])).tolist())


def test_the_champion_and_the_clusters_are_contrasted_with_controls_and_the_champion_with_the_runner_up():
    means = FIVE | {"cluster": 0.83, "hybrid": 0.86, "random_cluster": 0.79, "unified_longer": 0.83}
    comparison = compared(evaluation(means, n_items=6, noise=0.02))
    assert comparison.champion == "hybrid"
    assert [(c.method, c.other, c.is_control) for c in comparison.contrasts] == [
        ("hybrid", "cluster", False),
        ("hybrid", "random_cluster", True),
        ("hybrid", "unified_longer", True),
        ("cluster", "random_cluster", True),
        ("cluster", "unified_longer", True),
    ]
    for contrast in comparison.contrasts:
        means_of_both = [comparison.method(name).means["embedding_similarity"] for name in (contrast.method, contrast.other)]
        assert contrast.difference.mean == pytest.approx(means_of_both[0] - means_of_both[1])
    assert [c.difference.p_holm for c in comparison.contrasts] == holm(np.array([c.difference.p for c in comparison.contrasts])).tolist()
    assert "hybrid beats the runner-up cluster (+" in comparison.sentence
    assert "cluster beats a random partition of the same sizes (+" in comparison.sentence
    longer = comparison.contrast("cluster", "unified_longer")
    assert longer is not None
    assert longer.difference.outcome in ("equivalent", "undecided")
    assert (
        "; is equivalent to unified trained for" in comparison.sentence
        or "; is not told apart from unified trained for" in comparison.sentence
    )
    assert "| hybrid | cluster | runner-up |" in markdown(comparison)


def test_a_method_whose_mean_is_better_than_the_champions_is_told():
    """It lacks what a champion must have: here its gain is that of every other person, and half of it is lost for the others."""
    rows = evaluation({"unified": 0.6, "cluster": 0.63, "hybrid": 0.6}, (10, 10), noise=0.01)
    uneven = [
        replace(
            row,
            scores={
                **row.scores,
                "embedding_similarity": row.scores["embedding_similarity"] + (0.3 if int(row.persona_id[-1]) % 2 else -0.2),
            },
        )
        if row.method == "hybrid"
        else row
        for row in rows
    ]
    comparison = compared(uneven)
    assert comparison.champion == "cluster"
    assert comparison.methods[0].method == "hybrid"
    assert "cluster is not told apart from hybrid, whose mean is better (-" in comparison.sentence
    assert "| cluster | hybrid | better mean |" in markdown(comparison)
    assert "the runner-up" not in comparison.sentence


def test_a_champion_that_no_method_with_retrieval_stood_against_says_so():
    means = {"unified": 0.6, "cluster": 0.7}
    words = "Whether retrieved examples do better is not known, as no method with them was compared."
    assert words in compared(evaluation(means)).sentence
    assert words not in compared(evaluation(means | {"unified_retrieval": 0.6})).sentence
    assert words not in compared(evaluation(dict.fromkeys(means, 0.1))).sentence, "nobody is champion"
    assert words not in compared(evaluation(means | {"last_champion": 0.6})).sentence, "the study that is refreshed was asked that"


def test_metrics_beside_the_headline_are_told_with_their_margin_or_the_gain_that_could_have_been_shown():
    rows = evaluation({"unified": 0.6, "cluster": 0.7}, (10, 10))
    same = [replace(row, scores={**row.scores, "rouge_l": 0.5}) for row in rows]
    beside = compared(same, beside=("rouge_l",), margin={"embedding_similarity": 0.01, "rouge_l": 0.02})
    assert "ROUGE-L 50.00% (+0.00 points [+0.00, +0.00], p = 1.000: equivalent within 2.00 points)" in beside.sentence
    noisy = [replace(row, scores={**row.scores, "nll": 1 + (row.method == "cluster") * (-1) ** int(row.persona_id[-1])}) for row in rows]
    beside = compared(noisy, beside=("nll",), margin={"embedding_similarity": 0.01, "nll": 0.01})
    assert "p = 1.000: not told apart, as so few people and items show a difference of 0." in beside.sentence
    assert " nats or more four times in five)." in beside.sentence


def test_personalisation_is_claimed_only_where_the_control_of_the_claim_is_beaten():
    gain = {"unified": 0.78, "cluster": 0.84}
    apart = compared(evaluation(gain | {"random_cluster": 0.78}, (10, 20)))
    alike = compared(evaluation(gain | {"random_cluster": 0.84}, (10, 20)))
    worse = compared(evaluation(gain | {"random_cluster": 0.90}, (10, 20)))
    first = [comparison.sentence.split(". ")[0] for comparison in (apart, alike, worse)]
    assert all(sentence.startswith("cluster beats unified: ") for sentence in first)
    assert "; and because the people of a cluster are alike: cluster beats a random partition of the same sizes (+" in apart.sentence
    assert "alike is not shown: cluster is not told apart from a random partition of the same sizes (" in alike.sentence
    assert "alike is not shown: cluster is shown to be worse than a random partition of the same sizes (-" in worse.sentence
    assert "; without the control random_cluster nothing tests whether" in compared(evaluation(gain, (10, 20))).sentence
    other = compared(evaluation({"unified": 0.78, "hybrid": 0.84}, (10, 20)))
    assert "; no control of this study tests whether that is because of who the people are." in other.sentence
    own = compared(evaluation({"unified": 0.78, "per_persona": 0.84, "swapped_persona": 0.78}, (10, 20)))
    assert "; and because everybody's adapter has learnt from them: per_persona beats somebody else's personal adapter (+" in own.sentence


def test_tie_and_loss_rates_accompany_every_win_rate():
    rows = [
        r
        for r in evaluation({"unified": 0.8, "cluster": 0.86}, (10, 20), noise=0.02)
        if r.method == "unified" or r.persona_id < "persona_015"
    ]
    rows += [replace(r, method="cluster") for r in rows if r.persona_id >= "persona_015"]
    comparison = compared(rows)
    against = difference(comparison, "cluster")
    assert (against.tie_rate, against.win_rate + against.tie_rate + against.loss_rate) == (0.5, pytest.approx(1.0))
    shares = f"{100 * against.win_rate:.1f} / 50.0 / {100 * against.loss_rate:.1f}%"
    assert shares in markdown(comparison)
    assert f"equal for 50.0% and worse for {against.loss_rate:.1%} of the personas" in comparison.sentence
    out = io.StringIO()
    Console(file=out, width=160).print(console(comparison))
    assert shares in out.getvalue()


@given(st.lists(st.integers(0, 300), min_size=3, max_size=3).filter(any))
@settings(derandomize=True)
def test_shares_are_within_a_twentieth_of_a_point_and_equal_ones_read_alike(counts: list[int]):
    n = sum(counts)
    shares = replace(DIFFERENCE, win_rate=counts[0] / n, tie_rate=counts[1] / n).win_tie_loss
    assert all(abs(float(share) - 100 * count / n) <= 0.05 + 1e-9 for share, count in zip(shares, counts, strict=True))
    assert len(set(shares)) <= len(set(counts))


@pytest.mark.parametrize(("counts", "shown"), [((4, 4, 4), ("33.3",) * 3), ((195, 1, 4), ("97.5", "0.5", "2.0"))])
def test_equal_shares_read_alike_and_one_of_many_is_not_none(counts: tuple[int, int, int], shown: tuple[str, str, str]):
    win, tie, _ = counts
    assert replace(DIFFERENCE, win_rate=win / sum(counts), tie_rate=tie / sum(counts)).win_tie_loss == shown


def test_where_a_control_is_shown_to_be_better_the_verdict_says_which_methods_are_not():
    means = {"unified": 0.7, "cluster": 0.7, "hybrid": 0.6, "random_cluster": 0.8}
    one = compared(evaluation(means, (20, 20))).sentence
    assert "No method that can be champion is shown to beat unified (" in one
    assert "the best other that can be champion, cluster, differs by" in one
    assert "random_cluster, which cannot be champion (+" in one
    # Not shown to be better, but ahead all the same.
    ahead = compared(evaluation(means | {"cluster": 0.66, "random_cluster": 0.71}, (20, 20))).sentence
    assert "No method is shown to beat unified (" in ahead
    assert "the best other that can be champion, cluster, differs by -" in ahead
    lowest = compared(evaluation({"unified": 0.6, "cluster": 0.605, "random_cluster": 0.8}, (4, 4), noise=0.1)).sentence
    assert "nothing that can be champion is shown to beat unified" in lowest


def test_the_figure_is_headed_by_the_outcome_and_the_sample_alone():
    comparison = compared(evaluation({"unified": 0.78, "cluster": 0.84, "random_cluster": 0.78, "per_persona": 0.7}, (10, 20)))
    assert "per_persona" in comparison.sentence
    assert heading(comparison).startswith("cluster beats unified: ")
    assert "per_persona" not in heading(comparison)
    assert heading(comparison).endswith("Measured on 90 items of 30 personas.")
    alone = compared(evaluation({"unified": 0.8, "cluster": 0.86}, (2,)))
    assert heading(alone) == alone.sentence, "where there is no verdict, all of it is needed"


def test_dependent_personas_of_a_cluster_widen_the_interval_and_disagreeing_clusters_are_reported():
    rows = evaluation({"unified": 0.80, "cluster": 0.80}, (10, 10, 10, 10), noise=0.005)
    gains = {0: 0.06, 1: 0.05, 2: 0.04, 3: -0.03}
    moved = [
        replace(r, scores={**r.scores, "embedding_similarity": r.scores["embedding_similarity"] + gains[r.cluster]})
        if r.method == "cluster"
        else r
        for r in rows
    ]
    comparison = compared(moved)
    against = difference(comparison, "cluster")
    assert against.robust_low is not None
    assert against.robust_high is not None
    assert against.ci_low > 0 > against.robust_low
    assert against.robust_high - against.robust_low > 2 * (against.ci_high - against.ci_low)
    assert against.clusters_disagree
    assert against.by_cluster == pytest.approx(
        {k: comparison.method("cluster").by_cluster[k] - comparison.method("unified").by_cluster[k] for k in gains}
    )
    assert "though not if people who share an adapter share its luck [-" in comparison.sentence
    assert f"by cluster {', '.join(f'{100 * gain:+.2f}' for gain in against.by_cluster.values())}" in comparison.sentence
    one_cluster = difference(compared(evaluation({"unified": 0.8, "cluster": 0.8}, (6,))), "cluster")
    assert (one_cluster.robust_low, one_cluster.robust_high) == (None, None)


@pytest.mark.parametrize(
    ("method", "shares"),
    [
        ("baseline", False),
        ("per_persona", False),
        ("hybrid", False),
        ("cluster", True),
        ("cluster_hybrid", True),
        ("merge", True),
        ("selective_routing", True),
    ],
)
def test_only_people_who_may_share_an_adapter_share_luck(method: str, shares: bool):
    comparison = compared(evaluation({"unified": 0.8, method: 0.8}, (6, 6, 1)))
    against = difference(comparison, method)
    assert (against.robust_low is not None, against.robust_high is not None) == (shares, shares)
    row = next(
        line for line in markdown(comparison).split("95% robust to shared adapters")[1].splitlines() if line.startswith(f"| {method} ")
    )
    assert ("| - |" in row) != shares
    assert row.count("|") == 8, "the gain in every cluster is told all the same"


@pytest.mark.parametrize("seed", range(6))
def test_the_interval_of_people_who_share_adapters_holds_that_over_people(seed: int):
    """Gains are skewed, and so is the interval over people; groups are equal but for chance."""
    skewed = np.random.default_rng(seed).exponential(0.05, 40)
    rows = [
        replace(r, scores={m: score + skewed[int(r.persona_id[-3:])] for m, score in r.scores.items()}) if r.method == "cluster" else r
        for r in evaluation({"unified": 0.5, "cluster": 0.5}, (8,) * 5, noise=0.001)
    ]
    against = difference(compared(rows), "cluster")
    assert against.robust_low is not None
    assert against.robust_high is not None
    assert against.robust_low <= against.ci_low < against.ci_high <= against.robust_high


def test_two_people_alone_with_their_clusters_adapters_are_no_group():
    rows = evaluation({"unified": 0.8, "cluster": 0.8, "selective_routing": 0.8}, (6, 6, 1, 1))
    for method in ("cluster", "selective_routing"):
        (groups,) = paired_scores(rows, ["nll"]).shared[method]
        assert sorted(Counter(groups.tolist()).values()) == [1, 1, 6, 6]


def test_what_everybodys_own_adapter_gains_is_not_the_luck_of_a_few_where_clusters_gain_unequally():
    gains = {"unified": 0.78, "per_persona": 0.81, "swapped_persona": 0.78}
    rows = [
        replace(r, scores={m: score + 0.02 * (r.cluster or -1) for m, score in r.scores.items()}) if r.method == "per_persona" else r
        for r in evaluation(gains, (20, 20), noise=0.01)
    ]
    comparison = compared(rows)
    assert "; and because everybody's adapter has learnt from them: per_persona beats somebody else's" in comparison.sentence
    assert "share its luck" not in comparison.sentence
    assert claims_personalisation(comparison)


@pytest.mark.whole
def test_the_luck_of_a_few_adapters_is_no_personalisation():
    """Both methods are better than unified, and nothing is personal: each adapter has some luck, which its people share."""
    rng = np.random.default_rng(7)
    claims = wins = 0
    for _ in range(60):
        of_cluster, of_random, draw = rng.normal(0, 0.03, 5), rng.normal(0, 0.03, 5), rng.permutation(np.arange(40) % 5)
        means = [
            {"baseline": 0.5, "unified": 0.7, "cluster": 0.74 + of_cluster[p % 5], "random_cluster": 0.74 + of_random[draw[p]]}
            for p in range(40)
        ]
        rows = [
            EvaluationRow(
                *(method, f"p{p:02d}", p % 5, f"p{p:02d}/{item}", "", "", ""),
                {"embedding_similarity": mean + rng.normal(0, 0.02)},
                adapters=({"cluster": f"cluster-{p % 5}", "random_cluster": f"random-{draw[p]}"}.get(method, method),),
            )
            for p, own in enumerate(means)
            for item in range(2)
            for method, mean in own.items()
        ]
        comparison = compared(rows, higher_is_better={"embedding_similarity": True}, draws=100)
        against = comparison.contrast("cluster", "random_cluster")
        assert against is not None
        wins += against.difference.outcome == "better"
        claims += claims_personalisation(comparison)
        assert claims_personalisation(comparison) == ("; and because" in comparison.sentence)
        if comparison.champion == "cluster" and against.difference.outcome == "better" and against.difference.may_be_luck:
            assert "is not shown: cluster beats a random partition" in comparison.sentence
            assert ", though not if people who share an adapter share its luck [-" in comparison.sentence
    assert wins > 8, "people alone show a difference that is none"
    assert claims <= stats.binom.ppf(0.999, 60, 0.025)


def test_the_variance_of_training_seeds_is_in_the_interval():
    rows = evaluation({"baseline": 0.5, "unified": 0.80, "cluster": 0.80}, (20, 20), noise=0.01)
    shift = {0: 0.05, 1: 0.0, 2: 0.04}

    def trained(seed: int) -> list[EvaluationRow]:
        return [
            replace(
                r,
                seed=seed,
                scores={**r.scores, "embedding_similarity": r.scores["embedding_similarity"] + shift[seed] * (r.method == "cluster")},
            )
            for r in rows
            if r.method != "baseline" or seed == 0
        ]

    one, three = compared(rows), compared([row for seed in shift for row in trained(seed)])
    narrow, wide = difference(one, "cluster"), difference(three, "cluster")
    assert wide.ci_high - wide.ci_low > 5 * (narrow.ci_high - narrow.ci_low)
    assert wide.p < 0.001, "over people alone, the gain of these three trainings is sure"
    assert wide.outcome == "undecided"
    assert three.champion == "unified"
    assert wide.detectable is not None
    assert narrow.detectable is not None
    assert wide.detectable > narrow.detectable
    assert difference(three, "baseline").ci_high < -0.2, "what is not trained has no seeds of its own"
    assert "3 trainings each." in three.sentence


def test_the_sentence_says_how_the_gate_ended():
    gate = "The cluster adapters are those of rung lower-lr, which passed the gate after own was refused."
    comparison = compared(evaluation(FIVE), gate=gate)
    assert gate in comparison.sentence
    assert gate in markdown(comparison)
