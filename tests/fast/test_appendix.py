"""What stands below a comparison: effect sizes, simultaneous intervals of the other metrics and a mixed model, each against a reference."""

import time

import numpy as np
import pytest
from scipy import stats

from clusterlora.comparison.appendix import Appendix, appendix
from clusterlora.comparison.appendix_words import markdown, tables
from clusterlora.evaluation.mixed_model import minus_log_likelihood, mixed_model, reduced
from clusterlora.evaluation.statistics import effect_size, simultaneous_intervals, standard_error
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


def correlated(rng: np.random.Generator, n_people: int, n_tests: int, correlation: float):
    shared = rng.normal(size=(n_people, 1))
    return np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(size=(n_people, n_tests))


@pytest.mark.whole
@pytest.mark.parametrize("n_people", [6, pytest.param(30, marks=pytest.mark.whole)])
def test_simultaneous_intervals_hold_together_as_often_as_promised(n_people: int):
    n_tests, n_studies, n_held, n_held_alone = 20, 400, 0, 0
    for study in range(n_studies):
        rng = np.random.default_rng([n_people, study])
        deltas = correlated(rng, n_people, n_tests, 0.3)
        intervals = simultaneous_intervals(deltas, rng=rng)
        n_held += all(low <= 0 <= high for low, high in intervals)
        alone = stats.t.ppf(0.975, n_people - 1) * deltas.std(axis=0, ddof=1) / np.sqrt(n_people)
        n_held_alone += bool((np.abs(deltas.mean(axis=0)) <= alone).all())
    # Three standard errors of 95 % of 400 studies.
    assert 0.917 * n_studies <= n_held <= 0.983 * n_studies
    assert n_held_alone < 0.75 * n_studies, "one by one they would not"


@pytest.mark.parametrize(("n_people", "n_tests"), [(6, 40), (30, 12)])
def test_simultaneous_intervals_are_as_wide_as_the_dependence_of_tests_asks(n_people: int, n_tests: int):
    def critical(correlation: float) -> float:
        found: list[float] = []
        for study in range(12):
            rng = np.random.default_rng([n_people, study])
            deltas = correlated(rng, n_people, n_tests, correlation)
            low, high = simultaneous_intervals(deltas, rng=rng)[0]
            found.append((high - low) / (2 * standard_error(deltas[:, 0])[0]))
        return float(np.mean(found))

    independent = stats.t.isf((1 - 0.95 ** (1 / n_tests)) / 2, n_people - 1)
    assert critical(0.0) == pytest.approx(independent, rel=0.04), "Šidák's bound, exact for independent tests"
    assert critical(1.0) == pytest.approx(stats.t.isf(0.025, n_people - 1), rel=0.02), "a single test, however often"


def test_simultaneous_intervals_are_the_same_for_the_same_generator_and_know_seeds_and_constants():
    rng = np.random.default_rng(5)
    by_seed = rng.normal(size=(10, 3)) + np.array([0.0, 1.0, 2.0])
    deltas = np.column_stack([by_seed.mean(axis=1), np.full(10, 0.25)])
    first, second = (simultaneous_intervals(deltas, rng=np.random.default_rng(1), by_seed={0: by_seed}) for _ in range(2))
    assert first == second
    error, freedom = standard_error(deltas[:, 0], by_seed)
    assert freedom < 5 < len(deltas) - 1
    assert (first[0].high - first[0].low) / 2 == pytest.approx(stats.t.isf(0.025, freedom) * error, rel=0.1)
    assert first[1] == pytest.approx((0.25, 0.25))


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


@pytest.mark.whole
def test_planted_effects_of_clusters_and_seeds_make_the_interval_wider():
    rng = np.random.default_rng(3)
    differences, cluster = balanced(rng, clusters=4, people=6, seeds=3, sd=(1.0, 0.5, 0.5, 0.3))
    whole, people_alone = mixed_model("m", differences, cluster), mixed_model("m", differences[:, :1], np.zeros(24, dtype=np.int64))
    assert {*whole.variances} == {"cluster", "person", "seed", "rest"}
    assert {*people_alone.variances} == {"rest"}
    assert whole.high - whole.low > 1.5 * (people_alone.high - people_alone.low)


def test_the_reduced_likelihood_is_that_of_the_whole_covariance():
    rng = np.random.default_rng(4)
    cluster = np.repeat([0, 1, 2], [3, 5, 7])
    y = rng.normal(size=(15, 3)) + rng.normal(size=(15, 1))
    ones = np.ones(y.size)
    effects = {
        "cluster": np.kron(cluster[:, None] == cluster, np.ones((3, 3))),
        "person": np.kron(np.eye(15), np.ones((3, 3))),
        "seed": np.kron(np.ones((15, 15)), np.eye(3)),
        "rest": np.eye(45),
    }
    for shares in rng.uniform(0.1, 2.0, size=(5, 4)):
        covariance = sum(share * matrix for share, matrix in zip(shares, effects.values(), strict=True))
        inverse = np.linalg.inv(covariance)
        left = y.ravel() - (ones @ inverse @ y.ravel()) / (ones @ inverse @ ones)
        whole = 0.5 * (np.linalg.slogdet(covariance).logabsdet + np.log(ones @ inverse @ ones) + left @ inverse @ left)
        assert minus_log_likelihood(shares, reduced(y, cluster), tuple(effects)) == pytest.approx(whole)


@pytest.mark.whole
def test_the_model_of_thousands_of_people_is_fitted_at_once():
    differences, cluster = balanced(np.random.default_rng(6), clusters=40, people=100, seeds=3, sd=(1.0, 0.5, 0.5, 0.3))
    begun = time.process_time()
    model = mixed_model("cluster", differences, cluster)
    assert time.process_time() - begun < 5
    assert model.failed is None
    assert model.variances["person"] == pytest.approx(0.25, rel=0.1)
    assert model.variances["rest"] == pytest.approx(0.09, rel=0.1)
    assert model.low < 1 < model.high


@pytest.mark.parametrize(
    ("differences", "why"),
    [
        (np.ones((5, 1)), "nobody's difference varies"),
        (np.ones((2, 1)), "2 people"),
    ],
)
def test_a_model_that_cannot_be_fitted_says_why(differences: np.ndarray, why: str):
    model = mixed_model("cluster", differences, np.arange(len(differences)) % 2)
    assert why in str(model.failed)
    comparison = compared(evaluation(FIVE))
    told = markdown(Appendix(mixed=(model,)), comparison)
    assert f"not fitted: {model.failed}" in told


def test_the_model_is_told_as_a_check_whose_p_is_not_that_of_the_verdict():
    rows = evaluation(FIVE)
    comparison = compared(rows)
    told = markdown(appendix(rows, comparison, np.random.default_rng(0)), comparison)
    assert "not corrected for the number of methods, and of a t-test; the verdict's is of a rank test and corrected" in told
    assert "carry the result" not in told


def test_there_is_no_appendix_without_a_reference_or_a_verdict():
    rows = evaluation({"cluster": 0.8, "per_persona": 0.7})
    assert appendix(rows, compared(rows), np.random.default_rng(0)) == Appendix()
    few = evaluation(FIVE, sizes=(2, 2))
    assert appendix(few, compared(few), np.random.default_rng(0)) == Appendix()
    assert tables(Appendix(), compared(few)) == []


@pytest.mark.whole
@pytest.mark.parametrize(
    ("differences", "alone"),
    [
        pytest.param(np.repeat([0.3, -0.1], 4)[:, None], "cluster", id="everybody in a cluster gains the same"),
        pytest.param(np.repeat(np.arange(8.0)[:, None] % 3, 2, axis=1), "person", id="every seed gives the same"),
        pytest.param(np.repeat([[0.0, 1.0]], 8, axis=0), "seed", id="every person gains the same"),
    ],
)
def test_without_any_rest_there_is_no_model_and_the_words_say_what_varies(differences: np.ndarray, alone: str) -> None:
    model = mixed_model("cluster", differences, np.repeat([0, 1], 4))
    assert model.failed is not None
    assert model.failed.startswith("differences vary by")
    assert alone in model.failed


@pytest.mark.whole
def test_the_appendix_is_in_the_summary_and_in_the_report(finished_stores: Stores):
    compare_study("small", finished_stores, LOG)
    folder = finished_stores.folder("small") / "results"
    for file in ("summary.md", "report.html"):
        text = (folder / file).read_text(encoding="utf-8")
        for title in ("Effect sizes", "Other metrics", "Mixed model"):
            assert title in text, (file, title)
