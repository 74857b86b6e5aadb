"""A mixed model of a method's gain, as a check on the comparison: what is left of it once clusters and seeds may differ at random.

Every persona has a difference under every seed. The covariance then falls apart by rotations that leave the likelihood as it is: seeds into
their mean and contrasts, people into the totals of their clusters and contrasts within. What remains of the differences is a value per
cluster and three sums of squares, so that a fit costs as much as it has clusters, however many people there are.

legend   p persona, s training seed, k cluster
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, stats

from clusterlora.evaluation.statistics import RESOLUTION

_EFFECTS = ("cluster", "person", "seed", "rest")
"""The random effects, in the order of variances below."""
_NONE = 1e-4
"""Share of the total variance below which a component counts as none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedModel:
    """The mean difference with its 95 % interval, and the variance of each random effect.

    `failed` says why there is none; the numbers are then NaN.
    """

    method: str
    mean: float = np.nan
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan
    freedom: float = np.nan
    variances: Mapping[str, float]
    failed: str | None = None


def mixed_model(method: str, differences: Float[np.ndarray, "p s"], cluster: Int[np.ndarray, " p"]) -> MixedModel:
    """Return the model `d_ps = mean + cluster + person + seed + rest`, all but the mean random and independent, fitted by REML.

    With one seed, person and rest are one; with one cluster, or each person in their own, there is no effect of clusters. The interval is
    Student's with Satterthwaite's degrees of freedom, from the curvature of the likelihood at its maximum.
    Source: Laird & Ware 1982; Patterson & Thompson 1971 (REML); Satterthwaite 1946.

    Args:
        differences: method minus reference, a person's mean under each training seed.
    """
    n_personas, n_seeds = differences.shape
    scale = float(differences.std())
    if n_personas < 3 or scale <= RESOLUTION:
        why = f"{n_personas} people" if n_personas < 3 else "nobody's difference varies"
        return MixedModel(method=method, variances={}, failed=why)
    data = reduced(differences / scale, cluster)
    names = _effects(cluster, n_seeds)
    start = np.full(len(names), 1 / len(names))
    bounds = [(1e-6 if name == "rest" else 0.0, None) for name in names]
    found = optimize.minimize(minus_log_likelihood, start, args=(data, names), method="L-BFGS-B", bounds=bounds)
    if not found.success:
        return MixedModel(method=method, variances={}, failed=f"the likelihood found no maximum ({found.message})")
    present = [number for number, share in enumerate(found.x) if share > _NONE * found.x.sum()]
    shares, of_shares = found.x[present], [names[number] for number in present]
    if "rest" not in of_shares:
        # The likelihood grows without end towards no rest at all.
        return MixedModel(method=method, variances={}, failed=f"differences vary by {' and '.join(of_shares)} alone")
    mean, variance = _mean(shares, data, of_shares)
    freedom = _freedom(shares, data, of_shares, variance)
    if freedom is None:
        return MixedModel(method=method, variances={}, failed="the likelihood is flat at its maximum")
    half = float(stats.t.ppf(0.975, freedom)) * np.sqrt(variance)
    return MixedModel(
        method=method,
        mean=scale * mean,
        low=scale * (mean - half),
        high=scale * (mean + half),
        p=float(2 * stats.t.sf(abs(mean) / np.sqrt(variance), freedom)),
        freedom=freedom,
        variances={name: float(scale**2 * share) for name, share in zip(names, found.x, strict=True)},
    )


def _effects(cluster: Int[np.ndarray, " p"], n_seeds: int) -> tuple[str, ...]:
    """Return which random effects can be told from each other."""
    clustered = 1 < len(np.unique(cluster)) < len(cluster)
    return tuple(name for name in _EFFECTS if {"cluster": clustered, "person": n_seeds > 1, "seed": n_seeds > 1, "rest": True}[name])


class Reduced(NamedTuple):
    """All that the likelihood needs of the differences.

    `totals` are the clusters' mean differences times the root of their number, people times seeds. The squares are those of people within
    clusters (of their means, times the seeds), of seeds (of their means, times the people), and of what is left of both.
    """

    sizes: Float[np.ndarray, " k"]
    totals: Float[np.ndarray, " k"]
    n_seeds: int
    of_people: float
    of_seeds: float
    of_rest: float


def reduced(differences: Float[np.ndarray, "p s"], cluster: Int[np.ndarray, " p"]) -> Reduced:
    """Return what the likelihood needs of the differences, each persona's under every seed."""
    n_personas, n_seeds = differences.shape
    _, index, sizes = np.unique(cluster, return_inverse=True, return_counts=True)
    of_persona = differences.mean(axis=1)
    of_cluster = np.bincount(index, weights=of_persona) / sizes
    of_seed = differences.mean(axis=0) - differences.mean()
    return Reduced(
        sizes=sizes.astype(np.float64),
        totals=np.sqrt(sizes * n_seeds) * of_cluster,
        n_seeds=n_seeds,
        of_people=n_seeds * float(((of_persona - of_cluster[index]) ** 2).sum()),
        of_seeds=n_personas * float((of_seed**2).sum()),
        of_rest=float(((differences - of_persona[:, None] - of_seed) ** 2).sum()),
    )


class _Solved(NamedTuple):
    """The covariance's log-determinant, and the quadratic forms of its inverse in ones and totals."""

    log_determinant: float
    ones: float
    ones_totals: float
    totals: float


def _solved(shares: Float[np.ndarray, " part"], data: Reduced, names: Sequence[str]) -> _Solved:
    of_name = dict(zip(names, shares, strict=True))
    of_cluster, of_person, of_seed, rest = (float(of_name.get(name, 0.0)) for name in _EFFECTS)
    s, n = data.n_seeds, data.sizes.sum()
    within = rest + s * of_person
    contrast_of_seeds = rest + n * of_seed
    # Totals vary by `diagonal` each, and by the seeds' mean all together: a matrix of rank one more (Sherman & Morrison 1950).
    diagonal = within + s * of_cluster * data.sizes
    root = np.sqrt(data.sizes)
    shared = 1 + of_seed * float((root**2 / diagonal).sum())

    def product(x: Float[np.ndarray, " k"], y: Float[np.ndarray, " k"]) -> float:
        return float((x * y / diagonal).sum() - of_seed * (x * root / diagonal).sum() * (y * root / diagonal).sum() / shared)

    log_determinant = (
        float(np.log(diagonal).sum())
        + np.log(shared)
        + (n - len(root)) * np.log(within)
        + (s - 1) * (np.log(contrast_of_seeds) + (n - 1) * np.log(rest))
    )
    squares = data.of_people / within + data.of_seeds / contrast_of_seeds + data.of_rest / rest
    ones = np.sqrt(s) * root
    return _Solved(log_determinant, product(ones, ones), product(ones, data.totals), product(data.totals, data.totals) + squares)


def minus_log_likelihood(shares: Float[np.ndarray, " part"], data: Reduced, names: Sequence[str]) -> float:
    """Return minus the restricted log-likelihood of these variances, up to a constant."""
    solved = _solved(shares, data, names)
    return 0.5 * float(solved.log_determinant + np.log(solved.ones) + solved.totals - solved.ones_totals**2 / solved.ones)


def _mean(shares: Float[np.ndarray, " part"], data: Reduced, names: Sequence[str]) -> tuple[float, float]:
    """Return the generalised least squares estimate of the mean, and its variance."""
    solved = _solved(shares, data, names)
    return solved.ones_totals / solved.ones, 1 / solved.ones


def _freedom(shares: Float[np.ndarray, " part"], data: Reduced, names: Sequence[str], variance: float) -> float | None:
    """Return Satterthwaite's degrees of freedom; None where the likelihood has no curvature."""

    def stepped(*steps: tuple[int, float]) -> Float[np.ndarray, " part"]:
        moved = shares.copy()
        for number, step in steps:
            moved[number] += step
        return moved

    sizes = 1e-2 * shares
    n = len(shares)
    gradient = np.array(
        [(_mean(stepped((i, h)), data, names)[1] - _mean(stepped((i, -h)), data, names)[1]) / (2 * h) for i, h in enumerate(sizes)]
    )
    curvature = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            corners = [
                sign_i * sign_j * minus_log_likelihood(stepped((i, sign_i * sizes[i]), (j, sign_j * sizes[j])), data, names)
                for sign_i in (1, -1)
                for sign_j in (1, -1)
            ]
            curvature[i, j] = sum(corners) / (4 * sizes[i] * sizes[j])
    if np.linalg.eigvalsh(curvature)[0] <= 0:
        return None
    return float(np.clip(2 * variance**2 / (gradient @ np.linalg.solve(curvature, gradient)), 1.0, data.n_seeds * data.sizes.sum() - 1))
