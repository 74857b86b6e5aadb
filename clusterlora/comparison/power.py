"""The power of a comparison, estimated before anything is trained: what it can show at its size, and what it cannot."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from clusterlora.clustering.choice import LARGEST_K
from clusterlora.comparison.roles import can_win, contrast_pairs, deciding_control, is_base
from clusterlora.errors import counted
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.metrics.embedding_similarity import EMBEDDING_SIMILARITY
from clusterlora.evaluation.statistics import POWER, SIGNIFICANCE, detectable_mean, detectable_of_groups, smallest_p
from clusterlora.methods import METHODS
from clusterlora.settings import ClusteringSettings

Family = Literal["methods", "base model", "contrasts"]
"""Tests that Holm's correction is over: of the methods that can win, against the reference; of these and the reference, against the base
model, without which there is no champion; and of the contrasts, without which no gain is claimed to be personal."""

_DRAWS, _PARTITIONS = 2000, 10
"""Simulated studies, and the random partitions they are spread over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPower:
    """What a comparison of `n_methods` that could win can show on `n_personas`, in every family of tests that it has to pass.

    `family` is the one that asks for the largest difference or, where one can show none, the first such; it has `n_tests`. `detectable` is
    the smallest true difference that all families show with probability `POWER`: in units of `metric` where `is_estimated`, else in
    standard deviations of people's differences. None: `family` can show no difference, however large; with `enough` personas all can.
    `unclaimable` are the methods that could be champion and whose gain, for the number of contrasts, cannot be shown to be personal.
    `claimable` says, by number of clusters, from which difference a claim with `cause` is made so often that stands on the adapters of
    clusters, if these have no luck; nothing, where that is `detectable`. Where the number is open, it has the fewest and the most.
    """

    n_personas: int
    n_methods: int
    family: Family
    n_tests: int
    enough: int
    unclaimable: tuple[str, ...]
    detectable: float | None
    is_estimated: bool
    claimable: tuple[tuple[int, float], ...] = ()
    cause: str = ""
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
        amount = self._amount(self.detectable) + ("" if self.is_estimated else " of people's differences")
        return f"{size} shows a true difference of {amount} {POWER:.0%} of the time{self._limit}{self._price}."

    def _amount(self, difference: float) -> str:
        if not self.is_estimated:
            return f"{difference:.2f} standard deviations"
        metric = METRICS[self.metric]
        return f"{100 * difference:.1f} points" if metric.percent else f"{difference:.3g} {metric.unit}".rstrip()

    @property
    def _price(self) -> str:
        """What a claim takes that stands on the adapters of a few clusters."""
        if not self.claimable:
            return ""
        takes = " and ".join(f"{self._amount(least)} with {n} clusters" for n, least in self.claimable)
        return f"; to show as often that {self.cause} takes {takes}"

    @property
    def _limit(self) -> str:
        """Which tests ask for the most, where it is not those against the reference."""
        if self.family == "methods":
            return ""
        tests = "tests against the base model" if self.family == "base model" else "contrasts with controls and the runner-up"
        return f", even in the {self.n_tests} {tests}, which ask for the most"


def study_power(
    methods: Sequence[str],
    reference: str,
    n_personas: int,
    *,
    clusters: Sequence[Sequence[int]] = (),
    sd: float | None = None,
    metric: str = EMBEDDING_SIMILARITY.name,
) -> StudyPower | None:
    """Return the power of comparing these methods with the reference; None when the study does not do that.

    Args:
        clusters: how many people each cluster has; several of these where the number of clusters is open.
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
    unit = 1.0 if sd is None else sd
    error = unit / float(np.sqrt(n_personas))
    detectable = None if too_many else detectable_mean(error, n_personas - 1, n_units=n_personas, n_tests=most)
    cause = next((_cause(method) for method in n_contrasts if METHODS[method].needs_clusters), "")
    known = [sizes for sizes in clusters if len(sizes) > 1] if cause and detectable is not None else []
    takes = [(len(sizes), max(detectable or 0.0, unit * _beyond_luck(tuple(sizes)))) for sizes in known]
    return StudyPower(
        n_personas=n_personas,
        n_methods=len(can_be),
        family=family,
        n_tests=n_tests[family],
        enough=enough_personas(most),
        unclaimable=tuple(method for method, n in n_contrasts.items() if not _can_show(n, n_personas)),
        detectable=detectable,
        is_estimated=sd is not None,
        cause=cause,
        claimable=tuple(takes) if any(least != detectable for _, least in takes) else (),
        metric=metric,
    )


def expected_clusters(settings: ClusteringSettings, n_personas: int) -> tuple[tuple[int, ...], ...]:
    """Return how many people each cluster will have, as `study_power` takes it: where sizes are not given, as equal as can be.

    Where their number is chosen from the data, that is so of the fewest that there may be, and of the most; so few people that all are in
    one cluster have none of this.
    """
    if settings.sizes is not None and sum(settings.sizes) == n_personas:
        return (settings.sizes,)
    k = settings.k or len(settings.sizes or ())
    most = k or min(LARGEST_K, n_personas // settings.min_size)
    numbers = {k or 2, most} if 2 <= most <= n_personas else set[int]()
    return tuple(tuple((n_personas + i) // n for i in range(n)) for n in sorted(numbers))


@lru_cache(maxsize=32)
def _beyond_luck(sizes: tuple[int, ...]) -> float:
    """Return which gain a cluster is shown to have over random groups where adapters might have luck, in standard deviations.

    People are in clusters of these sizes and in random groups of the same, and differences are grouped by both.
    """
    rng, cluster = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes)
    drawn = [detectable_of_groups((cluster, rng.permutation(cluster)), draws=_DRAWS // _PARTITIONS, rng=rng) for _ in range(_PARTITIONS)]
    return float(np.mean(drawn))


def _cause(method: str) -> str:
    """Return what the method's deciding control says is the cause of its gain; empty without one."""
    control = deciding_control(method)
    return METHODS[control].cause if control is not None else ""


def why_no_power(methods: Sequence[str], reference: str) -> str:
    """Return what a study without power lacks, as a clause."""
    alone = "" if reference in methods else ", so no method can be champion; add it to methods"
    return f"nothing is compared with {reference}{alone}"


def _n_contrasts(champion: str, methods: Sequence[str], reference: str, n_methods: int) -> int:
    """Return how many contrasts there are if this method is champion: those with controls, and with the runner-up if there is one."""
    return len(contrast_pairs(champion, methods, reference)) + (n_methods > 1)


def _can_show(n_tests: int, n_personas: int) -> bool:
    """Return whether the smallest of so many p-values can be significant after Holm's correction."""
    return n_tests * smallest_p(n_personas) < SIGNIFICANCE


def enough_personas(n_tests: int) -> int:
    """Return with how many personas a difference can be shown at all in a family of so many tests."""
    return next(n for n in range(1, 1000) if _can_show(n_tests, n))
