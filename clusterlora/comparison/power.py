"""The power of a comparison, estimated before anything is trained: what it can show at its size, and what it cannot."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clusterlora.comparison.roles import can_win
from clusterlora.errors import counted
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.metrics.embedding_similarity import EMBEDDING_SIMILARITY
from clusterlora.evaluation.statistics import POWER, SIGNIFICANCE, detectable_mean, smallest_p


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPower:
    """What a comparison of `n_methods` that could win can show on `n_personas`.

    `detectable` is the smallest true difference it shows with probability `POWER`: in units of `metric` where
    `is_estimated`, else in standard deviations of people's differences. None: no difference can be shown, however large.
    """

    n_personas: int
    n_methods: int
    detectable: float | None
    is_estimated: bool
    metric: str = EMBEDDING_SIMILARITY.name

    @property
    def sentence(self) -> str:
        """The power in one line; where nothing can be shown, with the fix."""
        size = f"With {counted(self.n_personas, 'persona')} and {counted(self.n_methods, 'method')} that could win"
        if self.detectable is None:
            p = smallest_p(self.n_personas)
            return (
                f"{size} the comparison can show no difference, however large: its smallest p-value is {p:.3g}, {self.n_methods * p:.3g} "
                f"after Holm's correction; use at least {enough_personas(self.n_methods)} personas."
            )
        if self.is_estimated:
            metric = METRICS[self.metric]
            amount = f"{100 * self.detectable:.1f} points" if metric.percent else f"{self.detectable:.3g} {metric.unit}".rstrip()
            return f"{size} the comparison shows a true difference of {amount} {POWER:.0%} of the time."
        return (
            f"{size} the comparison shows a true difference of {self.detectable:.2f} standard deviations of people's differences "
            f"{POWER:.0%} of the time."
        )


def study_power(
    methods: Sequence[str], reference: str, n_personas: int, *, sd: float | None = None, metric: str = EMBEDDING_SIMILARITY.name
) -> StudyPower | None:
    """Return the power of comparing these methods with the reference; None when the study does not do that.

    Args:
        sd: the expected deviation of people's differences, in units of `metric`; None where nothing is known of it.
    """
    n_methods = sum(can_win(method) and method != reference for method in methods)
    if reference not in methods or not n_methods or n_personas < 1:
        return None
    deviation = 1.0 if sd is None else sd
    error = deviation / float(np.sqrt(n_personas))
    detectable = detectable_mean(error, n_personas - 1, n_units=n_personas, n_tests=n_methods) if n_personas > 1 else None
    return StudyPower(n_personas=n_personas, n_methods=n_methods, detectable=detectable, is_estimated=sd is not None, metric=metric)


def enough_personas(n_methods: int) -> int:
    """Return with how many personas a difference can be shown at all."""
    return next(n for n in range(1, 1000) if n_methods * smallest_p(n) < SIGNIFICANCE)
