"""The power of a comparison, estimated before anything is trained: what it can show at its size, and what it cannot."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clusterlora.comparison.roles import can_win, contrast_pairs, deciding_control, is_base
from clusterlora.errors import counted
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.metrics.embedding_similarity import EMBEDDING_SIMILARITY
from clusterlora.evaluation.statistics import POWER, SIGNIFICANCE, detectable_mean, smallest_p

Family = Literal["methods", "base model", "contrasts"]
"""Tests that Holm's correction is over: of the methods that can win, against the reference; of these and the reference, against the base
model, without which there is no champion; and of the contrasts, without which no gain is claimed to be personal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPower:
    """What a comparison of `n_methods` that could win can show on `n_personas`, in every family of tests that it has to pass.

    `family` is the one that asks for the largest difference or, where one can show none, the first such; it has `n_tests`. `detectable` is
    the smallest true difference that all families show with probability `POWER`: in units of `metric` where `is_estimated`, else in
    standard deviations of people's differences. None: `family` can show no difference, however large; with `enough` personas all can.
    `unclaimable` are the methods that could be champion and whose gain, for the number of contrasts, cannot be shown to be personal.
    """

    n_personas: int
    n_methods: int
    family: Family
    n_tests: int
    enough: int
    unclaimable: tuple[str, ...]
    detectable: float | None
    is_estimated: bool
    metric: str = EMBEDDING_SIMILARITY.name

    @property
    def sentence(self) -> str:
        """The power in one line; where something cannot be shown at all, with the fix."""
        size = f"With {counted(self.n_personas, 'persona')} and {counted(self.n_methods, 'method')} that could win the comparison"
        if self.detectable is None:
            p = smallest_p(self.n_personas)
            fewer = " or fewer controls" if self.family == "contrasts" else ""
            corrected = f"{self.n_tests * p:.3g} after Holm's correction; use at least {self.enough} personas{fewer}."
            if self.family == "methods":
                return f"{size} can show no difference, however large: its smallest p-value is {p:.3g}, {corrected}"
            if self.family == "base model":
                return (
                    f"{size} can name no champion, however large the differences: one must be shown to beat the base model, and of "
                    f"{self.n_tests} such tests the smallest p-value is {p:.3g}, {corrected}"
                )
            return (
                f"{size} can show no gain of {' or '.join(self.unclaimable)} to be personal, however large: of up to {self.n_tests} "
                f"contrasts the smallest p-value is {p:.3g}, {corrected}"
            )
        if self.is_estimated:
            metric = METRICS[self.metric]
            amount = f"{100 * self.detectable:.1f} points" if metric.percent else f"{self.detectable:.3g} {metric.unit}".rstrip()
        else:
            amount = f"{self.detectable:.2f} standard deviations of people's differences"
        return f"{size} shows a true difference of {amount} {POWER:.0%} of the time{self._limit}."

    @property
    def _limit(self) -> str:
        """Which tests ask for the most, where it is not those against the reference."""
        if self.family == "methods":
            return ""
        tests = "tests against the base model" if self.family == "base model" else "contrasts with controls and the runner-up"
        return f", even in the {self.n_tests} {tests}, which ask for the most"


def study_power(
    methods: Sequence[str], reference: str, n_personas: int, *, sd: float | None = None, metric: str = EMBEDDING_SIMILARITY.name
) -> StudyPower | None:
    """Return the power of comparing these methods with the reference; None when the study does not do that.

    Args:
        sd: the expected deviation of people's differences, in units of `metric`; None where nothing is known of it.
    """
    can_be = [method for method in methods if can_win(method) and method != reference]
    if reference not in methods or not can_be or n_personas < 1:
        return None
    n_contrasts = {
        method: _n_contrasts(method, methods, reference, len(can_be)) for method in can_be if deciding_control(method) in methods
    }
    n_tests: dict[Family, int] = {"methods": len(can_be)}
    if any(is_base(method) for method in methods):
        n_tests["base model"] = len(can_be) + 1
    if n_contrasts:
        n_tests["contrasts"] = max(n_contrasts.values())
    most = max(n_tests.values())
    too_many: list[Family] = [family for family, n in n_tests.items() if not _can_show(n, n_personas)]
    family: Family = too_many[0] if too_many else next(family for family, n in n_tests.items() if n == most)
    error = (1.0 if sd is None else sd) / float(np.sqrt(n_personas))
    return StudyPower(
        n_personas=n_personas,
        n_methods=len(can_be),
        family=family,
        n_tests=n_tests[family],
        enough=enough_personas(most),
        unclaimable=tuple(method for method, n in n_contrasts.items() if not _can_show(n, n_personas)),
        detectable=None if too_many else detectable_mean(error, n_personas - 1, n_units=n_personas, n_tests=most),
        is_estimated=sd is not None,
        metric=metric,
    )


def _n_contrasts(champion: str, methods: Sequence[str], reference: str, n_methods: int) -> int:
    """Return how many contrasts there are if this method is champion: those with controls, and with the runner-up if there is one."""
    return len(contrast_pairs(champion, methods, reference)) + (n_methods > 1)


def _can_show(n_tests: int, n_personas: int) -> bool:
    """Return whether the smallest of so many p-values can be significant after Holm's correction."""
    return n_tests * smallest_p(n_personas) < SIGNIFICANCE


def enough_personas(n_tests: int) -> int:
    """Return with how many personas a difference can be shown at all in a family of so many tests."""
    return next(n for n in range(1, 1000) if _can_show(n_tests, n))
