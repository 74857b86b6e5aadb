"""Statistics of paired scores: bootstrap, cluster-robust, simultaneous and Wilson intervals, signed-rank tests, power, effect sizes.

The persona is the unit everywhere: items of one persona are not independent of each other.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, stats

from clusterlora.errors import BadData

RESOLUTION = 1e-6
"""Differences below this are rounding: the same text scored in another batch differs by a few float32 units."""

SIGNIFICANCE = 0.05
"""Level of the tests, after correction for their number."""
POWER = 0.8
"""Probability with which a study is to show a gain that is there."""

_LOOKUPS_PER_CHUNK = 2_000_000
_STUDIES = 2000
"""Simulated studies for simultaneous intervals: the share that holds is then known to half a point."""


class Interval(NamedTuple):
    """A 95 % interval, in the units of what it is about."""

    low: float
    high: float


def paired_bootstrap(
    scores: Float[np.ndarray, "item method"], persona: Int[np.ndarray, " item"], *, draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draw method"]:
    """Return bootstrap draws of every method's mean over personas.

    Each draw takes P personas with replacement, and for each of them as many of its items as it has, with replacement. All methods
    see the same draw, so the difference of two columns is a draw of their paired difference.
    Source: Davison & Hinkley 1997, section 3.8 (hierarchical data).

    Args:
        scores: what each method scored on each item.
        persona: whom each item belongs to, as any integers.

    Raises:
        BadData: no items, or a score that is not finite.
    """
    if not len(scores) or not np.isfinite(scores).all():
        raise BadData("the bootstrap needs at least one item and finite scores; look for empty or failed answers")
    _, persona_index, n_items = np.unique(persona, return_inverse=True, return_counts=True)
    scores_by_persona = scores[np.argsort(persona_index, kind="stable")]
    first_item = np.cumsum(n_items) - n_items
    n_personas, n_total = len(n_items), len(scores)

    chunks = []
    for start in range(0, draws, chunk := max(1, _LOOKUPS_PER_CHUNK // n_total)):
        n_draws = min(chunk, draws - start)
        drawn = rng.integers(n_personas, size=(n_draws, n_personas))
        sizes = n_items[drawn]
        size_of_slot = np.repeat(sizes.ravel(), sizes.ravel())
        item = np.repeat(first_item[drawn].ravel(), sizes.ravel()) + rng.integers(size_of_slot)
        row = np.repeat(np.arange(n_draws), sizes.sum(axis=1))
        # A draw is a weighting of the items, and one matrix product then averages all methods at once.
        weights = np.bincount(row * n_total + item, weights=1.0 / (size_of_slot * n_personas), minlength=n_draws * n_total)
        chunks.append(weights.reshape(n_draws, n_total) @ scores_by_persona)
    return np.concatenate(chunks)


def bootstrap_interval(
    draws: Float[np.ndarray, " draw"],
    units: Float[np.ndarray, " unit"],
    *,
    level: float = 0.95,
    by_seed: Float[np.ndarray, "unit seed"] | None = None,
) -> Interval:
    """Return an interval of the mean of `units`: the central draws, rescaled to the spread that such a mean has.

    Draws of personas and of their items vary too much, as persona means carry the noise of their items already (Davison & Hinkley
    1997, section 3.8), and draws of few units too little. So distances from the mean are multiplied by t / z times the standard
    error of the mean over the deviation of the draws, which keeps their skewness. Source: expanded percentile interval, Hesterberg
    2015, section 5.2.

    Args:
        units: independent of each other; persona means, or the items of a single persona. One alone tells no spread.
        by_seed: the same units under each of several training seeds, whose variance then widens the interval.
    """
    tail = (1 - level) / 2
    low, high = np.percentile(draws, [100 * tail, 100 * (1 - tail)])
    centre, spread = units.mean(), draws.std()
    if len(units) > 1:
        error, freedom = standard_error(units, by_seed)
        if spread > RESOLUTION**2:
            widening = stats.t.ppf(1 - tail, freedom) / stats.norm.ppf(1 - tail) * error / spread
            low, high = centre + widening * (low - centre), centre + widening * (high - centre)
        else:
            half = stats.t.ppf(1 - tail, freedom) * error
            low, high = centre - half, centre + half
    return Interval(float(low), float(high))


def standard_error(units: Float[np.ndarray, " unit"], by_seed: Float[np.ndarray, "unit seed"] | None = None) -> tuple[float, float]:
    """Return (standard error of the mean of `units`, its degrees of freedom).

    With several training seeds the variance of the seeds' means over their number is added: another training would have given other
    adapters for everybody. What units and seeds share is counted in both terms, so the sum errs to the wide side. Degrees of freedom
    of the sum: Satterthwaite 1946.

    Args:
        units: at least two; with seeds, their means over seeds.
    """
    n = len(units)
    error, freedom = float(units.std(ddof=1) / np.sqrt(n)), float(n - 1)
    if by_seed is None or by_seed.shape[1] < 2:
        return error, freedom
    variance, freedom = _with_seeds(error**2, freedom, by_seed)
    return float(np.sqrt(variance)), freedom


def cluster_robust_interval(
    units: Float[np.ndarray, " unit"],
    groupings: Sequence[Int[np.ndarray, " unit"]],
    by_seed: Float[np.ndarray, "unit seed"] | None = None,
) -> Interval | None:
    """Return a 95 % interval of the mean of `units` that holds when units of one group depend on each other.

    People who share an adapter share its luck, so their differences are correlated, and an interval that takes people as independent
    is too narrow. The variance is the bias-reduced sum over groups of their summed residuals, squared (CR2), and t has the degrees
    of freedom that few and unequal groups leave (Bell & McCaffrey 2002; Imbens & Kolesar 2016). Where both methods of a difference
    group people, each in its own way, the variances of both groupings add up, and what they share, that of independent units,
    counts once (Cameron, Gelbach & Miller 2011). The widest interval of these, of one grouping alone, and of independent units counts
    (Angrist & Pischke 2009, section 8.2): groups are few, and by luck their means vary little.

    Args:
        groupings: a number per unit, the same for units of a group; those with a single group tell nothing.
        by_seed: as for `standard_error`.

    Returns:
        None where no grouping has two groups.
    """
    parts = [part for part in groupings if len(np.unique(part)) > 1]
    if not parts:
        return None
    candidates = [(float(variance), freedom) for variance, freedom in _robust_variances(units, parts)]
    if by_seed is not None and by_seed.shape[1] > 1:
        candidates = [_with_seeds(variance, freedom, by_seed) for variance, freedom in candidates]
    half = max(float(stats.t.ppf(0.975, freedom) * np.sqrt(variance)) for variance, freedom in candidates)
    return Interval(float(units.mean()) - half, float(units.mean()) + half)


def detectable_of_groups(groupings: Sequence[Int[np.ndarray, " unit"]], *, draws: int, rng: np.random.Generator) -> float:
    """Return the smallest true mean whose `cluster_robust_interval` is above zero with probability `POWER`, in standard deviations.

    Units are drawn independent of each other and normal, so groups have no luck: what is asked is the price of not knowing that.

    Args:
        groupings: as for `cluster_robust_interval`, each of two groups or more.
    """
    units = rng.standard_normal((draws, len(groupings[0])))
    halves = [stats.t.ppf(0.975, freedom) * np.sqrt(variance) for variance, freedom in _robust_variances(units, groupings)]
    return float(np.quantile(np.max(halves, axis=0) - units.mean(axis=-1), POWER))


def _robust_variances(
    units: Float[np.ndarray, "*draw unit"], parts: Sequence[Int[np.ndarray, " unit"]]
) -> list[tuple[Float[np.ndarray, "*draw"], float]]:
    """Return (variance of the mean, its degrees of freedom) of independent units, of every grouping and of all groupings together."""
    n = units.shape[-1]
    alone = np.asarray(units.var(axis=-1, ddof=1)) / n
    of_parts = [_clustered_variance(units, part) for part in parts]
    together = np.maximum(0.0, sum(variance for variance, _ in of_parts) - (len(parts) - 1) * alone)
    candidates = [(alone, n - 1.0), *of_parts, (together, min(freedom for _, freedom in of_parts))]
    return [(np.asarray(variance), freedom) for variance, freedom in candidates]


def _clustered_variance(
    units: Float[np.ndarray, "*draw unit"], group: Int[np.ndarray, " unit"]
) -> tuple[Float[np.ndarray, "*draw"], float]:
    """Return (variance of the mean of units that depend on each other within groups, its degrees of freedom)."""
    n = units.shape[-1]
    _, first, sizes = np.unique(np.sort(group), return_index=True, return_counts=True)
    shares = sizes / n
    residuals = np.add.reduceat((units - units.mean(axis=-1, keepdims=True))[..., np.argsort(group, kind="stable")], first, axis=-1)
    leverage = shares**2 / (1 - shares)
    freedom = 1 / float(np.sum(shares**2) + leverage.sum() ** 2 - np.sum(leverage**2))
    return np.asarray(np.sum(residuals**2 / (1 - shares), axis=-1) / n**2), freedom


def _with_seeds(variance: float, freedom: float, by_seed: Float[np.ndarray, "unit seed"]) -> tuple[float, float]:
    """Return (variance of a mean with that of the training seeds' means over their number, its degrees of freedom)."""
    n_seeds = by_seed.shape[1]
    of_seeds = float(by_seed.mean(axis=0).var(ddof=1) / n_seeds)
    total = variance + of_seeds
    if total <= RESOLUTION**2:
        return variance, freedom
    return total, total**2 / (variance**2 / freedom + of_seeds**2 / (n_seeds - 1))


def smallest_p(n_units: int) -> float:
    """Return the smallest two-sided p-value that the signed-rank test can have with so many units: all of them differ one way."""
    return min(1.0, 2.0 ** (1 - n_units))


def sign_test_count(n_units: int, level: float) -> int:
    """Return how many of the units must be positive for a one-sided sign test at this level; more than there are when none suffices."""
    # isf is the smallest count k with P(more than k) <= level.
    return int(stats.binom.isf(level, n_units, 0.5)) + 1


def detectable_mean(error: float, freedom: float, *, n_units: int, n_tests: int) -> float | None:
    """Return the smallest true mean that a signed-rank test shows with probability `POWER`; None when no mean can be shown.

    The level is `SIGNIFICANCE` over the number of tests, Holm's most demanding step. Power is that of the t-test, whose standard error
    is divided by sqrt(3 / pi): the signed-rank test's efficiency where units are normal (Lehmann 1975). With few units no p-value
    is small enough, however large the mean.

    Args:
        error: the standard error of the mean.
        freedom: its degrees of freedom.
    """
    level = SIGNIFICANCE / n_tests
    if smallest_p(n_units) >= level:
        return None
    if error <= RESOLUTION:
        return RESOLUTION
    critical = stats.t.isf(level / 2, freedom)

    def lacking(shift: float) -> float:
        return POWER - float(stats.nct.sf(critical, freedom, shift))

    shift = optimize.root_scalar(lacking, bracket=(0.0, 10 * (critical + 1))).root
    return shift * error / float(np.sqrt(3 / np.pi))


def shrunken_means(scores: Float[np.ndarray, "item method"], persona: Int[np.ndarray, " item"]) -> Float[np.ndarray, "persona method"]:
    """Return each persona's mean per method, drawn towards the method's mean by the share of its distance that few items explain.

    The mean of n items varies by s^2 / n around the persona's true mean (s^2 is pooled within personas), true means by t^2 around the
    method's; a persona keeps t^2 / (t^2 + s^2 / n) of its distance. t^2 is the variance of the means less the mean of s^2 / n, at
    least 0. Where every persona has one item, nothing tells noise from difference, and means are returned as they are.
    Source: Efron & Morris 1975; moment estimate of t^2, Morris 1983.
    """
    _, index, n_items = np.unique(persona, return_inverse=True, return_counts=True)
    n_personas = len(n_items)
    sums = np.zeros((n_personas, scores.shape[1]))
    np.add.at(sums, index, scores)
    means = sums / n_items[:, None]
    if n_personas < 2 or len(scores) == n_personas:
        return means
    within = np.sum((scores - means[index]) ** 2, axis=0) / (len(scores) - n_personas)
    noise = within / n_items[:, None]
    between = np.maximum(means.var(axis=0, ddof=1) - noise.mean(axis=0), 0.0)
    total = between + noise
    kept = np.divide(between, total, out=np.ones_like(total), where=total > 0)
    centre = means.mean(axis=0)
    return centre + kept * (means - centre)


def wilson_interval(successes: int, n: int) -> Interval:
    """Return Wilson's 95 % score interval of a share.

    Source: Wilson 1927. Unlike the normal interval it stays inside 0..1 and is right for small n.

    Raises:
        BadData: n is not positive, or successes are not in 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise BadData(f"a share needs 0 <= successes <= n and n >= 1, found {successes} of {n}")
    z = float(stats.norm.ppf(0.975))
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # The share lies in its interval by definition; at 0 and 1 it is an end, and rounding must not push it out.
    return Interval(max(0.0, min(share, float(centre - half))), min(1.0, max(share, float(centre + half))))


def signed_rank_p(deltas: Float[np.ndarray, " persona"]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; 1.0 when no persona differs.

    Personas whose difference is rounding (below `RESOLUTION`) are left out, as Wilcoxon 1945 does with zeros.
    """
    differing = deltas[np.abs(deltas) >= RESOLUTION]
    if not len(differing):
        return 1.0
    return float(stats.wilcoxon(differing).pvalue)


def holm(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Return p-values adjusted so that the chance of any false rejection among them stays below the level (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values, dtype=np.float64)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def welch_interval(
    first: Float[np.ndarray, "*draw _first"], second: Float[np.ndarray, "*draw _second"], *, power: float
) -> tuple[Float[np.ndarray, "*draw"], Float[np.ndarray, "*draw"], Float[np.ndarray, "*draw"]]:
    """Return the 95 % interval of the difference of two independent means (Welch 1947), and what it detects with this power.

    That is the smallest true difference whose interval lies above zero so often, by the variances of these samples. A sample of one bounds
    nothing.
    """
    difference = np.asarray(first.mean(axis=-1) - second.mean(axis=-1))
    if min(first.shape[-1], second.shape[-1]) < 2:
        unbounded = np.full_like(difference, np.inf)
        return np.full_like(difference, -np.inf), unbounded, unbounded
    parts = [values.var(axis=-1, ddof=1) / values.shape[-1] for values in (first, second)]
    variance = np.asarray(sum(parts))
    squares = sum(part**2 / (values.shape[-1] - 1) for part, values in zip(parts, (first, second), strict=True))
    freedom = np.divide(variance**2, squares, out=np.ones_like(variance), where=squares > 0)
    error = np.sqrt(variance)
    half, beyond = (stats.t.ppf(level, freedom) * error for level in (0.975, power))
    return np.asarray(difference - half), np.asarray(difference + half), np.asarray(half + beyond)


def effect_size(gains: Float[np.ndarray, " persona"]) -> float | None:
    """Return the mean gain in standard deviations of people's gains, corrected for few of them; None where they do not vary.

    Cohen's d of paired differences, with Hedges' correction 1 - 3 / (4 (n - 1) - 1).
    Source: Cohen 1988, ch. 2; Hedges 1981.
    """
    n = len(gains)
    if n < 2 or (spread := float(gains.std(ddof=1))) <= RESOLUTION:
        return None
    return (1 - 3 / (4 * (n - 1) - 1)) * float(gains.mean()) / spread


def simultaneous_intervals(
    deltas: Float[np.ndarray, "persona test"],
    *,
    rng: np.random.Generator,
    by_seed: Mapping[int, Float[np.ndarray, "persona seed"]] | None = None,
) -> list[Interval]:
    """Return intervals of the tests' means that hold all together in 95 of 100 studies: mean ± t · standard error.

    t is Student's at the level that the smallest p-value of all tests falls below in 5 of 100 simulated studies. Those have as many
    people, normal differences, and tests as correlated as those of `deltas`, so intervals account for dependence and for few people.
    Source: Westfall & Young 1993 (single-step maximum, parametric resampling).

    Args:
        deltas: people's mean differences, for each test.
        by_seed: the same under each of several training seeds, by the number of the test; they add to its error, and t has its freedom.
    """
    n = len(deltas)
    varies = deltas.std(axis=0) > RESOLUTION
    if not varies.any():
        return [Interval(float(mean), float(mean)) for mean in deltas.mean(axis=0)]
    largest = _largest_t(_shrunken_correlation(deltas[:, varies]), n, rng)
    level = 2 * float(stats.t.sf(np.quantile(largest, 0.95), n - 1))
    intervals: list[Interval] = []
    for number, delta in enumerate(deltas.T):
        error, freedom = standard_error(delta, (by_seed or {}).get(number))
        half = float(stats.t.isf(level / 2, freedom)) * error
        intervals.append(Interval(float(delta.mean() - half), float(delta.mean() + half)))
    return intervals


def _shrunken_correlation(deltas: Float[np.ndarray, "persona test"]) -> Float[np.ndarray, "test test"]:
    """Return the correlations between tests, all drawn towards none by the share of their squares that few people explain.

    By chance alone a squared correlation r² of P people has the mean 1 / (P - 1), which would make tests look more dependent than they
    are; r² - (1 - r²) / (P - 2) has the mean 0. Source: Schäfer & Strimmer 2005 (common shrinkage); Ezekiel 1930 (adjusted r²).
    """
    n = len(deltas)
    centred = deltas - deltas.mean(axis=0)
    units = centred / np.linalg.norm(centred, axis=0)
    correlation = units.T @ units
    squares = correlation[np.triu_indices_from(correlation, 1)] ** 2
    by_chance = (1 - squares).sum() / max(n - 2, 1)
    chance = min(1.0, by_chance / squares.sum()) if by_chance > 0 else 0.0
    return (1 - chance) * correlation + chance * np.eye(len(correlation))


def _largest_t(correlation: Float[np.ndarray, "test test"], n_people: int, rng: np.random.Generator) -> Float[np.ndarray, " study"]:
    """Return the largest absolute t statistic of all tests in each of `_STUDIES` simulated studies without any difference.

    Not people are drawn but what t needs of them: their mean, and the triangular root of their covariance (Bartlett 1933).
    """
    freedom = n_people - 1
    lengths, directions = np.linalg.eigh(correlation)
    kept = lengths > RESOLUTION
    root = (np.sqrt(lengths[kept])[:, None] * directions.T[kept]).astype(np.float32)
    rank, rows = len(root), min(len(root), freedom)
    diagonal, above = np.arange(rows), np.triu_indices(rows, 1, rank)
    largest: list[Float[np.ndarray, " study"]] = []
    for start in range(0, _STUDIES, chunk := max(1, _LOOKUPS_PER_CHUNK // rank**2)):
        n_studies = min(chunk, _STUDIES - start)
        triangles = np.zeros((n_studies, rows, rank), np.float32)
        triangles[:, diagonal, diagonal] = np.sqrt(rng.chisquare(freedom - diagonal, size=(n_studies, rows)))
        triangles[:, *above] = rng.standard_normal((n_studies, len(above[0])), np.float32)
        variances = np.square(triangles @ root).sum(axis=1) / freedom
        means = rng.standard_normal((n_studies, rank), np.float32) @ root
        largest.append(np.sqrt((means**2 / variances).max(axis=1)))
    return np.concatenate(largest)
