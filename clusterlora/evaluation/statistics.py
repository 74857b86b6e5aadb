"""Statistics of paired scores: bootstrap and Wilson intervals, shrunken means, signed-rank tests, Holm's correction.

The persona is the unit everywhere: items of one persona are not independent of each other.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from clusterlora.errors import BadData

RESOLUTION = 1e-6
"""Differences below this are rounding: the same text scored in another batch differs by a few float32 units."""

_LOOKUPS_PER_CHUNK = 2_000_000


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


def bootstrap_interval(draws: Float[np.ndarray, " draw"], units: Float[np.ndarray, " unit"]) -> Interval:
    """Return a 95 % interval of the mean of `units`: the central draws, rescaled to the spread that such a mean has.

    Draws of personas and of their items vary too much, as persona means carry the noise of their items already (Davison & Hinkley
    1997, section 3.8), and draws of few units too little. So distances from the mean are multiplied by t / z times the standard
    error of the mean over the deviation of the draws, which keeps their skewness. Source: expanded percentile interval, Hesterberg
    2015, section 5.2.

    Args:
        units: independent of each other; persona means, or the items of a single persona. One alone tells no spread.
    """
    low, high = np.percentile(draws, [2.5, 97.5])
    centre, spread, n = units.mean(), draws.std(), len(units)
    if n > 1 and spread > RESOLUTION**2:
        widening = stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975) * units.std(ddof=1) / np.sqrt(n) / spread
        low, high = centre + widening * (low - centre), centre + widening * (high - centre)
    return Interval(float(low), float(high))


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
    return float(stats.wilcoxon(differing).pvalue)  # pyright: ignore[reportAttributeAccessIssue] (the stubs hide the result's type)


def holm(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Return p-values adjusted so that the chance of any false rejection among them stays below the level (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values, dtype=np.float64)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
