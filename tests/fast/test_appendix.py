"""What stands below a comparison: effect sizes, simultaneous intervals of the other metrics and a mixed model, each against a reference."""

import numpy as np
import pytest
from scipy import stats

from clusterlora.comparison.appendix import Appendix, appendix
from clusterlora.comparison.appendix_words import markdown, tables
from clusterlora.evaluation.mixed_model import MOST_ROWS, mixed_model
from clusterlora.evaluation.statistics import effect_size, paired_bootstrap, simultaneous_intervals
from clusterlora.ports.stores import Stores
from clusterlora.stages.compare import compare_study
from tests.fixtures.comparison import FIVE, compared, evaluation
from tests.fixtures.stages import LOG


def test_the_effect_size_is_cohens_d_with_hedges_correction():
    gains = np.array([1.0, 2.0, 4.0, 5.0])
    # Mean 3, standard deviation sqrt(10 / 3), correction 1 - 3 / 11.
    assert effect_size(gains) == pytest.approx((1 - 3 / 11) * 3 / np.sqrt(10 / 3))
    assert effect_size(-gains) == pytest.approx(-float(effect_size(gains) or 0))
    assert effect_size(np.ones(4)) is None
    assert effect_size(np.ones(1)) is None


def test_effects_are_positive_where_a_method_gains_and_less_is_better():
    rows = evaluation(FIVE)
    comparison = compared(rows)
    below = appendix(rows, comparison, np.random.default_rng(0))
    losses = {one.method: one for one in below.others if one.metric == "nll"}
    assert losses["cluster"].mean < 0 < (losses["cluster"].effect or 0)
    assert (losses["baseline"].effect or 0) < 0 < losses["baseline"].mean
    gains = np.array(
        [comparison.method("cluster").by_persona[p] - comparison.method("unified").by_persona[p] for p in comparison.cluster_by_persona]
    )
    headline = next(one for one in below.headline if one.method == "cluster")
    assert headline.effect == pytest.approx((1 - 3 / (4 * (len(gains) - 1) - 1)) * gains.mean() / gains.std(ddof=1))


def test_simultaneous_intervals_hold_together_as_often_as_promised():
    n_people, n_tests, n_studies, n_held, n_held_alone = 30, 12, 150, 0, 0
    for study in range(n_studies):
        rng = np.random.default_rng(study)
        deltas = rng.normal(size=(n_people, n_tests))
        draws = paired_bootstrap(deltas, np.arange(n_people), draws=300, rng=rng)
        intervals = simultaneous_intervals(draws, deltas)
        n_held += all(low <= 0 <= high for low, high in intervals)
        alone = stats.t.ppf(0.975, n_people - 1) * deltas.std(axis=0, ddof=1) / np.sqrt(n_people)
        n_held_alone += bool((np.abs(deltas.mean(axis=0)) <= alone).all())
    assert n_held >= 0.88 * n_studies
    assert n_held_alone < 0.75 * n_studies, "one by one they would not"


def balanced(rng: np.random.Generator, *, clusters: int, people: int, seeds: int, sd: tuple[float, float, float, float]):
    """Differences with a mean of 1 and random effects of these deviations: cluster, person, seed, rest."""
    cluster = np.repeat(np.arange(clusters), people)
    of_cluster, of_person = sd[0] * rng.normal(size=clusters), sd[1] * rng.normal(size=len(cluster))
    of_seed, rest = sd[2] * rng.normal(size=seeds), sd[3] * rng.normal(size=(len(cluster), seeds))
    return 1 + of_cluster[cluster][:, None] + of_person[:, None] + of_seed + rest, cluster


def test_the_model_of_clusters_is_the_analysis_of_variance_where_that_is_exact():
    differences, cluster = balanced(np.random.default_rng(1), clusters=6, people=5, seeds=1, sd=(2.0, 1.0, 0.0, 0.0))
    model = mixed_model("cluster", differences, cluster)
    groups = differences[:, 0].reshape(6, 5)
    between = 5 * groups.mean(axis=1).var(ddof=1)
    within = groups.var(axis=1, ddof=1).mean()
    assert between > within, "else the estimates would be at their bound"
    assert model.failed is None
    assert model.variances["cluster"] == pytest.approx((between - within) / 5, rel=1e-3)
    assert model.variances["rest"] == pytest.approx(within, rel=1e-3)
    assert model.mean == pytest.approx(differences.mean())
    assert model.freedom == pytest.approx(5, rel=0.02), "six clusters"
    half = stats.t.ppf(0.975, 5) * np.sqrt(between / 30)
    assert (model.low, model.high) == pytest.approx((model.mean - half, model.mean + half), rel=0.02)


def test_the_model_of_people_and_seeds_is_the_two_way_analysis_of_variance():
    differences, _ = balanced(np.random.default_rng(2), clusters=1, people=20, seeds=4, sd=(0.0, 1.0, 0.8, 0.5))
    model = mixed_model("cluster", differences, np.zeros(20, dtype=np.int64))
    n, s = differences.shape
    people = s * differences.mean(axis=1).var(ddof=1)
    seeds = n * differences.mean(axis=0).var(ddof=1)
    rest = differences - differences.mean(axis=1, keepdims=True) - differences.mean(axis=0) + differences.mean()
    error = float((rest**2).sum() / ((n - 1) * (s - 1)))
    assert model.variances == pytest.approx({"person": (people - error) / s, "seed": (seeds - error) / n, "rest": error}, rel=1e-3)
    assert model.mean == pytest.approx(differences.mean())


def test_planted_effects_of_clusters_and_seeds_make_the_interval_wider():
    rng = np.random.default_rng(3)
    differences, cluster = balanced(rng, clusters=4, people=6, seeds=3, sd=(1.0, 0.5, 0.5, 0.3))
    whole, people_alone = mixed_model("m", differences, cluster), mixed_model("m", differences[:, :1], np.zeros(24, dtype=np.int64))
    assert {*whole.variances} == {"cluster", "person", "seed", "rest"}
    assert {*people_alone.variances} == {"rest"}
    assert whole.high - whole.low > 1.5 * (people_alone.high - people_alone.low)


@pytest.mark.parametrize(
    ("differences", "why"),
    [
        (np.ones((5, 1)), "nobody's difference varies"),
        (np.ones((2, 1)), "2 people"),
        (np.random.default_rng(0).normal(size=(MOST_ROWS, 2)), "more than the"),
    ],
)
def test_a_model_that_cannot_be_fitted_says_why(differences: np.ndarray, why: str):
    model = mixed_model("cluster", differences, np.arange(len(differences)) % 2)
    assert why in str(model.failed)
    comparison = compared(evaluation(FIVE))
    told = markdown(Appendix(mixed=(model,)), comparison)
    assert f"not fitted: {model.failed}" in told


def test_there_is_no_appendix_without_a_reference_or_a_verdict():
    rows = evaluation({"cluster": 0.8, "per_persona": 0.7})
    assert appendix(rows, compared(rows), np.random.default_rng(0)) == Appendix()
    few = evaluation(FIVE, sizes=(2, 2))
    assert appendix(few, compared(few), np.random.default_rng(0)) == Appendix()
    assert tables(Appendix(), compared(few)) == []


def test_the_appendix_is_in_the_summary_and_in_the_report(finished_stores: Stores):
    compare_study("small", finished_stores, LOG)
    folder = finished_stores.folder("small") / "results"
    for file in ("summary.md", "report.html"):
        text = (folder / file).read_text(encoding="utf-8")
        for title in ("Effect sizes", "Other metrics", "Mixed model"):
            assert title in text, (file, title)
