"""Intervals and tests, checked against published examples, brute force and simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.errors import BadData
from clusterlora.evaluation.statistics import (
    POWER,
    bootstrap_interval,
    cluster_robust_interval,
    detectable_mean,
    holm,
    paired_bootstrap,
    shrunken_means,
    signed_rank_p,
    smallest_p,
    standard_error,
    wilson_interval,
)


def ragged_scores(rng: np.random.Generator, n_personas: int = 12) -> tuple[np.ndarray, np.ndarray]:
    persona = np.repeat(np.arange(n_personas), rng.integers(1, 8, size=n_personas))
    taste = rng.normal(0, 0.1, size=(n_personas, 1))
    return 0.7 + taste[persona] + rng.normal(0, 0.1, size=(len(persona), 2)), persona


def bootstrap_in_plain_loops(scores: np.ndarray, persona: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    items = [np.flatnonzero(persona == p) for p in np.unique(persona)]
    means = []
    for _ in range(draws):
        drawn = [items[i] for i in rng.integers(len(items), size=len(items))]
        means.append(np.mean([scores[rng.choice(own, size=len(own))].mean(axis=0) for own in drawn], axis=0))
    return np.array(means)


@pytest.mark.whole
def test_bootstrap_draws_are_distributed_like_those_of_plain_loops():
    rng = np.random.default_rng(1)
    scores, persona = ragged_scores(rng)
    fast = paired_bootstrap(scores, persona, draws=20_000, rng=rng)
    slow = bootstrap_in_plain_loops(scores, persona, 3_000, rng)
    assert fast.mean(axis=0) == pytest.approx(slow.mean(axis=0), abs=0.003)
    assert fast.std(axis=0) == pytest.approx(slow.std(axis=0), rel=0.06)
    assert np.cov(fast.T)[0, 1] == pytest.approx(np.cov(slow.T)[0, 1], rel=0.12)


def test_personas_weigh_the_same_however_many_items_they_have():
    scores = np.array([[1.0]] * 99 + [[0.0]])
    persona = np.array([0] * 99 + [1])
    draws = paired_bootstrap(scores, persona, draws=4_000, rng=np.random.default_rng(0))
    assert draws.mean() == pytest.approx(0.5, abs=0.03)
    assert set(np.round(np.unique(draws), 6)) == {0.0, 0.5, 1.0}


def test_a_constant_gain_has_an_interval_of_zero_width_because_draws_are_paired():
    scores, persona = ragged_scores(np.random.default_rng(2))
    shifted = np.column_stack([scores[:, 0], scores[:, 0] + 0.05])
    draws = paired_bootstrap(shifted, persona, draws=500, rng=np.random.default_rng(0))
    assert bootstrap_interval(draws[:, 1] - draws[:, 0], np.full(12, 0.05)) == pytest.approx((0.05, 0.05))


@pytest.mark.parametrize(
    ("n_personas", "n_items", "persona_sd", "item_sd"),
    [
        (16, (3, 4), 0.04, 0.12),
        (30, (1, 8), 0.05, 0.10),
        pytest.param(60, (4, 5), 0.10, 0.05, marks=pytest.mark.whole),
        pytest.param(200, (2, 3), 0.0, 0.10, marks=pytest.mark.whole),
    ],
)
def test_the_interval_covers_the_true_difference_95_times_in_100(
    n_personas: int, n_items: tuple[int, int], persona_sd: float, item_sd: float
):
    rng = np.random.default_rng(n_personas)
    truth, covered, repeats = 0.02, 0, 1_000
    for _ in range(repeats):
        persona = np.repeat(np.arange(n_personas), rng.integers(*n_items, size=n_personas))
        gains = truth + rng.normal(0, persona_sd, size=n_personas)[persona] + rng.normal(0, item_sd, size=len(persona))
        means = np.bincount(persona, weights=gains) / np.bincount(persona)
        low, high = bootstrap_interval(paired_bootstrap(gains[:, None], persona, draws=200, rng=rng)[:, 0], means)
        covered += low <= truth <= high
    assert 0.93 <= covered / repeats <= 0.97


@pytest.mark.whole
@pytest.mark.parametrize(("n_seeds", "seed_sd"), [(2, 0.0), (2, 0.01), (5, 0.01)])
def test_with_the_variance_of_training_seeds_the_interval_covers_what_another_training_would_give(n_seeds: int, seed_sd: float):
    rng = np.random.default_rng(n_seeds)
    covered = without = 0
    for _ in range(600):
        by_seed = 0.02 + rng.normal(0, 0.05, (30, 1)) + rng.normal(0, seed_sd, (1, n_seeds)) + rng.normal(0, 0.05, (30, n_seeds))
        means = by_seed.mean(axis=1)
        draws = rng.choice(means, (200, 30)).mean(axis=1)
        low, high = bootstrap_interval(draws, means, by_seed=by_seed)
        covered += low <= 0.02 <= high
        low, high = bootstrap_interval(draws, means)
        without += low <= 0.02 <= high
    assert covered / 600 >= 0.92
    assert covered >= without


def test_seeds_that_agree_leave_the_standard_error_as_it_is_and_others_add_the_variance_of_their_mean():
    means = np.array([0.1, 0.2, 0.4])
    error, freedom = standard_error(means)
    assert (error, freedom) == (pytest.approx(means.std(ddof=1) / np.sqrt(3)), 2)
    assert standard_error(means, np.column_stack([means, means])) == pytest.approx((error, freedom))
    apart = np.column_stack([means - 0.1, means + 0.1])
    assert standard_error(means, apart)[0] ** 2 == pytest.approx(error**2 + 0.02 / 2)


@pytest.mark.parametrize("sizes", [(10, 10, 10, 10, 10), (16, 52, 25, 35, 72), (4, 8, 6)])
def test_the_cluster_robust_interval_covers_where_people_of_a_cluster_share_their_luck(sizes: tuple[int, ...]):
    rng = np.random.default_rng(sum(sizes))
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    covered = as_independent = 0
    for _ in range(1000):
        units = rng.normal(0, 0.03, len(sizes))[cluster] + rng.normal(0, 0.05, len(cluster))
        interval = cluster_robust_interval(units, [cluster])
        assert interval is not None
        covered += interval.low <= 0 <= interval.high
        half = 1.98 * units.std(ddof=1) / np.sqrt(len(units))
        as_independent += abs(units.mean()) <= half
    assert 0.92 <= covered / 1000 <= 0.985
    assert as_independent / 1000 < 0.85


def test_the_interval_covers_where_each_of_two_methods_shares_luck_among_groups_of_its_own():
    rng = np.random.default_rng(5)
    cluster = np.arange(60) % 5
    covered = by_clusters_alone = 0
    for _ in range(400):
        group = rng.permutation(cluster)
        units = rng.normal(0, 0.03, 5)[cluster] - rng.normal(0, 0.03, 5)[group] + rng.normal(0, 0.03, 60)
        both, one = cluster_robust_interval(units, [cluster, group]), cluster_robust_interval(units, [cluster])
        assert both is not None
        assert one is not None
        covered += both.low <= 0 <= both.high
        by_clusters_alone += one.low <= 0 <= one.high
    assert covered / 400 > 0.93
    assert by_clusters_alone / 400 < 0.92


def test_where_two_methods_group_people_the_variances_of_both_groupings_add_up_and_what_they_share_counts_once():
    cluster, group = np.divmod(np.arange(16), 4)
    units = np.array([-0.4, -0.1, 0.2, 0.3])[cluster] + np.array([0.3, -0.2, 0.4, -0.1])[group]
    of_clusters, of_groups = units.reshape(4, 4).mean(axis=1), units.reshape(4, 4).mean(axis=0)
    half = 3.182446 * np.sqrt((of_clusters.var(ddof=1) + of_groups.var(ddof=1)) / 4 - units.var(ddof=1) / 16)
    assert cluster_robust_interval(units, [cluster, group]) == pytest.approx((units.mean() - half, units.mean() + half))


def test_the_interval_of_people_who_share_adapters_is_no_narrower_than_that_of_independent_people_and_has_the_seeds_variance():
    # The clusters' means are equal by luck.
    units, cluster = np.array([-0.3, 0.3, -0.1, 0.1, -0.2, 0.2]), np.array([0, 0, 1, 1, 2, 2])
    error, _ = standard_error(units)
    interval = cluster_robust_interval(units, [cluster])
    assert interval is not None
    assert interval.high > 2.57 * error
    of_seeds = np.column_stack([units - 0.6, units, units + 0.6])
    with_seeds = cluster_robust_interval(units, [cluster], of_seeds)
    assert with_seeds is not None
    assert with_seeds.high > 2 * standard_error(units, of_seeds)[0] > 2 * np.sqrt(0.36 / 3)


def test_with_clusters_of_one_size_the_cluster_robust_interval_is_the_t_interval_of_their_means():
    units = np.array([0.1, 0.3, 0.2, 0.6, 0.5, 0.1])
    means = units.reshape(3, 2).mean(axis=1)
    half = 4.302653 * means.std(ddof=1) / np.sqrt(3)
    assert cluster_robust_interval(units, [np.array([7, 7, 1, 1, 4, 4])]) == pytest.approx((means.mean() - half, means.mean() + half))
    assert cluster_robust_interval(units, [np.zeros(6, dtype=int)]) is None


@pytest.mark.whole
@pytest.mark.parametrize(("n_units", "n_tests"), [(12, 1), (12, 4), (40, 8)])
def test_a_detectable_mean_is_shown_four_times_in_five(n_units: int, n_tests: int):
    rng = np.random.default_rng(n_units)
    mean = detectable_mean(0.05 / np.sqrt(n_units), n_units - 1, n_units=n_units, n_tests=n_tests)
    assert mean is not None
    hits = [n_tests * signed_rank_p(rng.normal(mean, 0.05, n_units)) < 0.05 for _ in range(500)]
    assert np.mean(hits) == pytest.approx(POWER, abs=0.06)


def test_with_too_few_personas_no_gain_is_detectable():
    # Four tests: 0.05 / 4 = 0.0125 lies between 2 / 2^7 and 2 / 2^8.
    assert smallest_p(7) == signed_rank_p(np.arange(1.0, 8.0)) == 2 / 2**7
    assert detectable_mean(0.001, 6, n_units=7, n_tests=4) is None
    assert detectable_mean(0.001, 7, n_units=8, n_tests=4) is not None
    assert detectable_mean(0.0, 7, n_units=8, n_tests=4) == pytest.approx(0, abs=1e-5)


def test_the_interval_keeps_the_skewness_of_its_draws():
    draws = np.random.default_rng(5).exponential(size=4_000)
    low, high = bootstrap_interval(draws, np.array([0.0, 1.0, 2.0]))
    assert high - 1 > 2 * (1 - low)


def test_the_interval_leaves_out_a_difference_that_is_not_there():
    persona = np.repeat(np.arange(40), 5)
    gains = 0.1 + np.random.default_rng(4).normal(0, 0.05, size=len(persona))
    draws = paired_bootstrap(gains[:, None], persona, draws=2_000, rng=np.random.default_rng(0))[:, 0]
    low, high = bootstrap_interval(draws, gains.reshape(40, 5).mean(axis=1))
    assert low > 0.08
    assert high < 0.12


def test_naming_personas_differently_changes_no_draw():
    scores, persona = ragged_scores(np.random.default_rng(5))
    draws = paired_bootstrap(scores, persona, draws=50, rng=np.random.default_rng(0))
    renamed = paired_bootstrap(scores, 1000 + 7 * persona, draws=50, rng=np.random.default_rng(0))
    assert np.array_equal(draws, renamed)


@pytest.mark.parametrize("scores", [np.zeros((0, 1)), np.array([[np.nan]]), np.array([[np.inf]])])
def test_a_bootstrap_of_nothing_or_of_nan_is_refused(scores: np.ndarray):
    with pytest.raises(BadData):
        paired_bootstrap(scores, np.zeros(len(scores), dtype=int), draws=100, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
)
def test_wilson_intervals_agree_with_newcombe_1998_table_1(successes: int, n: int, low: float, high: float):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_wilson_interval_holds_the_share_and_mirrors_for_failures(share: tuple[int, int]):
    successes, n = share
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_a_wilson_interval_of_impossible_counts_is_refused(successes: int, n: int):
    with pytest.raises(BadData, match="successes"):
        wilson_interval(successes, n)


def test_shrunken_means_agree_with_a_worked_example():
    # Means 2, 5, 9 (variance 37/3); within: squares 2 + 2 + 2 over 3 = 2, so noise 1 each; kept (37/3 - 1) / (37/3) = 34/37.
    scores = np.array([[1.0], [3.0], [4.0], [6.0], [8.0], [10.0]])
    expected = [16 / 3 + 34 / 37 * (mean - 16 / 3) for mean in (2, 5, 9)]
    assert shrunken_means(scores, np.array([0, 0, 1, 1, 2, 2]))[:, 0] == pytest.approx(expected)


def test_personas_that_differ_by_noise_alone_shrink_to_the_mean_and_those_without_noise_keep_theirs():
    persona = np.repeat(np.arange(4), 2)
    noise_alone = np.array([[0.0], [1.0]] * 4)
    assert shrunken_means(noise_alone, persona) == pytest.approx(np.full((4, 1), 0.5))
    no_noise = np.repeat(np.array([[0.1], [0.5], [0.6], [0.9]]), 2, axis=0)
    assert shrunken_means(no_noise, persona) == pytest.approx(no_noise[::2])
    assert shrunken_means(np.full((8, 1), 0.7), persona) == pytest.approx(np.full((4, 1), 0.7))
    one_item_each = np.array([[0.1], [0.9]])
    assert shrunken_means(one_item_each, np.array([0, 1])) == pytest.approx(one_item_each)
    assert shrunken_means(np.array([[0.2], [0.4]]), np.array([5, 5])) == pytest.approx(np.array([[0.3]]))


def test_shrunken_means_come_closer_to_the_truth_than_plain_means():
    rng = np.random.default_rng(7)
    persona = np.repeat(np.arange(60), 3)
    truth = 0.7 + rng.normal(0, 0.04, size=(60, 20))
    scores = truth[persona] + rng.normal(0, 0.12, size=(180, 20))
    plain = np.stack([scores[persona == p].mean(axis=0) for p in range(60)])
    shrunken = shrunken_means(scores, persona)
    assert np.mean((shrunken - truth) ** 2) < 0.6 * np.mean((plain - truth) ** 2)
    assert abs(np.mean(shrunken.min(axis=0) - truth.min(axis=0))) < abs(np.mean(plain.min(axis=0) - truth.min(axis=0)))


def test_signed_rank_agrees_with_darwins_maize():
    # Cross- minus self-fertilised heights, eighths of an inch (Darwin 1876, in Fisher's Design of Experiments); exact p = 0.0413.
    differences = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=float)
    assert signed_rank_p(differences) == pytest.approx(0.0413, abs=5e-5)


def test_signed_rank_agrees_with_all_sign_patterns():
    differences = np.array([0.4, -0.1, 0.7, 0.25, -0.3, 0.9, 0.55])
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    observed = min(ranks[differences > 0].sum(), ranks[differences < 0].sum())
    sums = [ranks[np.array(signs)].sum() for signs in itertools.product([True, False], repeat=len(ranks))]
    expected = min(1.0, 2 * np.mean(np.array(sums) <= observed))
    assert signed_rank_p(differences) == pytest.approx(expected)


def test_rounding_is_no_difference():
    assert signed_rank_p(np.full(50, 1e-9)) == 1.0
    assert signed_rank_p(np.full(50, 1e-3)) < 1e-6


def test_holm_agrees_with_a_worked_example():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_only_raises_p_values_and_keeps_their_order(p_values: list[float]):
    p = np.array(p_values)
    adjusted = holm(p)
    assert np.all(adjusted >= p)
    assert np.all(adjusted <= 1)
    assert np.all(np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0)
