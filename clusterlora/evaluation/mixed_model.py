"""A mixed model of a method's gain, as a check on the comparison: what is left of it once clusters and seeds may differ at random.

legend   p persona, s training seed, n persona under a seed
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, stats

from clusterlora.evaluation.statistics import RESOLUTION

MOST_ROWS = 1500
"""Personas times seeds up to which the model is fitted: each step factorises a matrix of that size."""

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
    if differences.size > MOST_ROWS:
        return MixedModel(
            method=method, variances={}, failed=f"{differences.size} differences are more than the {MOST_ROWS} it is fitted to"
        )
    parts = _covariances(cluster, n_seeds)
    y = differences.ravel() / scale
    start = np.full(len(parts), 1 / len(parts))
    bounds = [(1e-6 if name == "rest" else 0.0, None) for name in parts]
    found = optimize.minimize(_minus_log_likelihood, start, args=(y, list(parts.values())), method="L-BFGS-B", bounds=bounds)
    if not found.success:
        return MixedModel(method=method, variances={}, failed=f"the likelihood found no maximum ({found.message})")
    present = [number for number, share in enumerate(found.x) if share > _NONE * found.x.sum()]
    shares, matrices = found.x[present], [list(parts.values())[number] for number in present]
    mean, variance = _mean(shares, y, matrices)
    freedom = _freedom(shares, y, matrices, variance)
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
        variances={name: float(scale**2 * share) for name, share in zip(parts, found.x, strict=True)},
    )


def _covariances(cluster: Int[np.ndarray, " p"], n_seeds: int) -> dict[str, Float[np.ndarray, "n n"]]:
    """Return, by random effect, which differences share it."""
    n = len(cluster)
    same_cluster = (cluster[:, None] == cluster).astype(np.float64)
    parts: dict[str, Float[np.ndarray, "n n"]] = {}
    if 1 < len(np.unique(cluster)) < n:
        parts["cluster"] = np.kron(same_cluster, np.ones((n_seeds, n_seeds)))
    if n_seeds > 1:
        parts["person"] = np.kron(np.eye(n), np.ones((n_seeds, n_seeds)))
        parts["seed"] = np.kron(np.ones((n, n)), np.eye(n_seeds))
    return {**parts, "rest": np.eye(n * n_seeds)}


class _Solved(NamedTuple):
    """The covariance's log-determinant, and its inverse times ones and times y."""

    log_determinant: float
    of_ones: Float[np.ndarray, " n"]
    of_y: Float[np.ndarray, " n"]


def _solved(shares: Float[np.ndarray, " part"], y: Float[np.ndarray, " n"], matrices: Sequence[Float[np.ndarray, "n n"]]) -> _Solved:
    covariance = np.tensordot(shares, np.stack(matrices), axes=1)
    both = np.linalg.solve(covariance, np.column_stack([np.ones_like(y), y]))
    return _Solved(float(np.linalg.slogdet(covariance).logabsdet), both[:, 0], both[:, 1])


def _minus_log_likelihood(
    shares: Float[np.ndarray, " part"], y: Float[np.ndarray, " n"], matrices: Sequence[Float[np.ndarray, "n n"]]
) -> float:
    """Return minus the restricted log-likelihood, up to a constant."""
    solved = _solved(shares, y, matrices)
    rest = y - solved.of_y.sum() / solved.of_ones.sum()
    # What is left of y is orthogonal to the ones once both are solved, so one product is enough.
    return 0.5 * float(solved.log_determinant + np.log(solved.of_ones.sum()) + rest @ solved.of_y)


def _mean(
    shares: Float[np.ndarray, " part"], y: Float[np.ndarray, " n"], matrices: Sequence[Float[np.ndarray, "n n"]]
) -> tuple[float, float]:
    """Return the generalised least squares estimate of the mean, and its variance."""
    solved = _solved(shares, y, matrices)
    information = solved.of_ones.sum()
    return float(solved.of_y.sum() / information), float(1 / information)


def _freedom(
    shares: Float[np.ndarray, " part"], y: Float[np.ndarray, " n"], matrices: Sequence[Float[np.ndarray, "n n"]], variance: float
) -> float | None:
    """Return Satterthwaite's degrees of freedom; None where the likelihood has no curvature."""

    def stepped(*steps: tuple[int, float]) -> Float[np.ndarray, " part"]:
        moved = shares.copy()
        for number, step in steps:
            moved[number] += step
        return moved

    sizes = 1e-2 * shares
    n = len(shares)
    gradient = np.array(
        [(_mean(stepped((i, h)), y, matrices)[1] - _mean(stepped((i, -h)), y, matrices)[1]) / (2 * h) for i, h in enumerate(sizes)]
    )
    curvature = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            corners = [
                sign_i * sign_j * _minus_log_likelihood(stepped((i, sign_i * sizes[i]), (j, sign_j * sizes[j])), y, matrices)
                for sign_i in (1, -1)
                for sign_j in (1, -1)
            ]
            curvature[i, j] = sum(corners) / (4 * sizes[i] * sizes[j])
    if np.linalg.eigvalsh(curvature)[0] <= 0:
        return None
    return float(np.clip(2 * variance**2 / (gradient @ np.linalg.solve(curvature, gradient)), 1.0, len(y) - 1))
