"""Paired differences between methods, their tests in families, and their outcomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from clusterlora.comparison.result import PairedDifference, ShownOutcome
from clusterlora.comparison.scores import PairedScores
from clusterlora.evaluation.statistics import (
    RESOLUTION,
    SIGNIFICANCE,
    Interval,
    bootstrap_interval,
    cluster_robust_interval,
    detectable_mean,
    holm,
    signed_rank_p,
    standard_error,
    wilson_interval,
)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """The headline scores of all methods: persona means, bootstrap draws, and persona means by seed; `sign` is -1 if lower is better.

    `shared` is that of `PairedScores`.
    """

    methods: tuple[str, ...]
    means: Float[np.ndarray, "persona method"]
    draws: Float[np.ndarray, "draw method"]
    by_seed: Float[np.ndarray, "persona method seed"]
    cluster: Int[np.ndarray, " persona"]
    shared: Mapping[str, tuple[Int[np.ndarray, " persona"], ...]]
    sign: float
    margin: float

    @classmethod
    def of(cls, scores: PairedScores, headline: str, draws: Float[np.ndarray, "draw method"], sign: float, margin: float) -> "Scored":
        """Return the scores of the headline metric with their bootstrap draws."""
        by_seed = scores.persona_means_by_seed(headline)
        means, cluster = scores.persona_means(headline), scores.cluster_of_persona
        return cls(scores.methods, means, draws, by_seed, cluster, scores.shared, sign, margin)

    def interval(self, method: str) -> Interval:
        """Return the 95 % interval of a method's mean."""
        column = self.methods.index(method)
        return bootstrap_interval(self.draws[:, column], self.means[:, column], by_seed=_common_seeds(self.by_seed[:, column]))

    def family(self, pairs: Sequence[tuple[str, str]]) -> list[PairedDifference]:
        """Return the difference of each pair, first minus second, with p-values corrected over all pairs."""
        columns = [(self.methods.index(method), self.methods.index(other)) for method, other in pairs]
        p_values = np.array([signed_rank_p(self.means[:, i] - self.means[:, j]) for i, j in columns])
        corrected = holm(p_values).tolist()
        return [self._difference(i, j, p, p_holm, len(pairs)) for (i, j), p, p_holm in zip(columns, p_values, corrected, strict=True)]

    def _difference(self, i: int, j: int, p: float, p_holm: float, n_tests: int) -> PairedDifference:
        delta, draws = self.means[:, i] - self.means[:, j], self.draws[:, i] - self.draws[:, j]
        by_seed = _common_seeds(self.by_seed[:, i] - self.by_seed[:, j])
        interval = bootstrap_interval(draws, delta, by_seed=by_seed)
        n_wins = int(np.sum(self.sign * delta > RESOLUTION))
        win_interval = wilson_interval(n_wins, len(delta))
        clustered = cluster_robust_interval(delta, self._groupings(i, j), by_seed)
        # The bootstrap's ends are skewed, so that one may lie outside of Student's.
        robust = Interval(min(interval.low, clustered.low), max(interval.high, clustered.high)) if clustered else None
        # Two one-sided tests at 5 % each are the 90 % interval within the margin (Schuirmann 1987).
        within = bootstrap_interval(draws, delta, level=1 - 2 * SIGNIFICANCE, by_seed=by_seed)
        can_tell = len(delta) > 1 or not draws.std() > RESOLUTION
        return PairedDifference(
            mean=float(delta.mean()),
            ci_low=interval.low,
            ci_high=interval.high,
            p=float(p),
            p_holm=p_holm,
            win_rate=n_wins / len(delta),
            win_low=win_interval.low,
            win_high=win_interval.high,
            tie_rate=float(np.mean(np.abs(delta) <= RESOLUTION)),
            outcome=self._outcome(interval, p_holm, is_equivalent=can_tell and -self.margin < within.low and within.high < self.margin),
            detectable=_detectable(delta, by_seed, n_tests),
            margin=self.margin,
            robust_low=robust.low if robust else None,
            robust_high=robust.high if robust else None,
            by_cluster={int(cluster): float(delta[self.cluster == cluster].mean()) for cluster in np.unique(self.cluster)},
        )

    def _groupings(self, i: int, j: int) -> list[Int[np.ndarray, " persona"]]:
        """Return how people share the adapters of two methods, each grouping once; none where nobody shares one, or everybody does."""
        groupings = {
            tuple(grouping.tolist()): grouping
            for grouping in (*self.shared[self.methods[i]], *self.shared[self.methods[j]])
            if 1 < len(np.unique(grouping)) < len(grouping)
        }
        return list(groupings.values())

    def _outcome(self, interval: Interval, p_holm: float, *, is_equivalent: bool) -> ShownOutcome:
        low, high = sorted((self.sign * interval.low, self.sign * interval.high))
        if p_holm < SIGNIFICANCE and (low > 0 or high < 0):
            return "better" if low > 0 else "worse"
        return "equivalent" if is_equivalent else "undecided"


def _common_seeds(by_seed: Float[np.ndarray, "persona seed"]) -> Float[np.ndarray, "persona seed"] | None:
    """Return the columns of the training seeds that both methods have; None with fewer than two."""
    common = by_seed[:, np.isfinite(by_seed).all(axis=0)]
    return common if common.shape[1] > 1 else None


def _detectable(delta: Float[np.ndarray, " persona"], by_seed: Float[np.ndarray, "persona seed"] | None, n_tests: int) -> float | None:
    """Return the smallest gain that both test and interval detect; the interval includes the variance of several seeds."""
    if len(delta) < 2:
        return None
    by_test = detectable_mean(*standard_error(delta), n_units=len(delta), n_tests=n_tests)
    by_interval = detectable_mean(*standard_error(delta, by_seed), n_units=len(delta), n_tests=1)
    return None if by_test is None or by_interval is None else max(by_test, by_interval)
