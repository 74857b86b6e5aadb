"""A reviewer's checks of a comparison: without a planted difference, with one, and with shuffled dialogues."""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from clusterlora.comparison.compare import compare_methods
from clusterlora.comparison.result import Comparison
from clusterlora.comparison.roles import can_win
from clusterlora.evaluation.statistics import SIGNIFICANCE
from clusterlora.values import EvaluationRow

REPEATS = 300
METHODS = ("baseline", "unified", "per_persona", "cluster", "cluster_hybrid")


def simulated(gains: Mapping[str, float], rng: np.random.Generator, *, n_personas: int = 30, n_items: int = 4) -> Comparison:
    """The comparison of methods whose true means differ by `gains` alone.

    Personas differ, and so do items; each method suits some personas better than others, by chance, and answers each item by luck.
    """
    persona = rng.normal(0.75, 0.04, (n_personas, 1, 1)) + rng.normal(0, 0.12, (n_personas, n_items, 1))
    suits = rng.normal(0, 0.03, (n_personas, 1, len(METHODS)))
    luck = rng.normal(0, 0.06, (n_personas, n_items, len(METHODS)))
    scores = persona + suits + luck + np.array([gains.get(method, 0.0) for method in METHODS])
    rows = [
        EvaluationRow(
            method, f"p{p:02d}", p % 3, f"p{p:02d}/{i}", "ask", "reference", "text", {"embedding_similarity": float(scores[p, i, m])}
        )
        for m, method in enumerate(METHODS)
        for p in range(n_personas)
        for i in range(n_items)
    ]
    return compare_methods(rows, headline="embedding_similarity", higher_is_better={"embedding_similarity": True}, draws=400, rng=rng)


def count(comparisons: list[Comparison]) -> tuple[int, int]:
    """In how many comparisons any method that could win is said to differ (by Holm), and in how many any is said to win."""
    differs = sum(
        any(can_win(m.method) and m.vs_reference and m.vs_reference.p_holm < SIGNIFICANCE for m in c.methods) for c in comparisons
    )
    return differs, sum(c.champion not in ("unified", None) for c in comparisons)


@pytest.mark.whole
def test_without_a_true_difference_one_study_in_twenty_shows_one_and_fewer_show_a_win():
    rng = np.random.default_rng(20)
    differs, wins = count([simulated({}, rng) for _ in range(REPEATS)])
    # 99 % of studies with a true rate of 5 % lie within the binomial's central range. Holm keeps the rate at 5 % or below.
    least, most = stats.binom.interval(0.99, REPEATS, SIGNIFICANCE)
    assert least <= differs <= most, differs
    assert wins <= differs, "a win is a difference in the right direction"


@pytest.mark.whole
def test_a_planted_gain_of_the_clusters_is_detected_with_an_interval_that_covers_it():
    rng = np.random.default_rng(21)
    comparisons = [simulated({"cluster": 0.045, "baseline": -0.045}, rng) for _ in range(20)]
    assert np.mean([c.champion == "cluster" for c in comparisons]) >= 0.9
    covers = [d.ci_low <= 0.045 <= d.ci_high for c in comparisons if (d := c.method("cluster").vs_reference)]
    assert np.mean(covers) >= stats.binom.ppf(0.005, len(comparisons), 0.95) / len(comparisons)


@pytest.mark.whole
@pytest.mark.parametrize("method", ["per_persona", "cluster"])
def test_a_loss_is_never_called_a_win(method: str):
    rng = np.random.default_rng(22)
    assert all(simulated({method: -0.045}, rng).champion != method for _ in range(10))
