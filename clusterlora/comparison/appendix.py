"""Beside the verdict, and without a word in it: effect sizes, all other metrics with simultaneous intervals, and a mixed model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clusterlora.comparison.result import Comparison
from clusterlora.comparison.scores import PairedScores, paired_scores
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.mixed_model import MixedModel, mixed_model
from clusterlora.evaluation.statistics import Interval, effect_size, simultaneous_intervals
from clusterlora.values import EvaluationRow


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDifference:
    """A method's difference to the reference on one metric; `effect` is positive where it gains, None where nobody's difference varies.

    `low` and `high` hold for all metrics and methods of an appendix together; they are NaN for the headline, whose interval is elsewhere.
    """

    metric: str
    method: str
    mean: float
    low: float
    high: float
    effect: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Appendix:
    """What is told below a comparison: the headline's effect sizes, the other metrics, and mixed models of champion and `cluster`.

    `judge` is a sentence on what the judge is worth, where one was asked.
    """

    headline: tuple[MetricDifference, ...] = ()
    others: tuple[MetricDifference, ...] = ()
    mixed: tuple[MixedModel, ...] = ()
    judge: str | None = None


NO_APPENDIX = Appendix()


def appendix(rows: Sequence[EvaluationRow], comparison: Comparison, rng: np.random.Generator) -> Appendix:
    """Return the appendix of a comparison of these rows; an empty one without a reference or a verdict."""
    if comparison.reference is None or not comparison.has_verdict:
        return NO_APPENDIX
    compared = set(comparison.cluster_by_persona)
    scores = paired_scores([row for row in rows if row.persona_id in compared], comparison.metrics)
    methods = [result.method for result in comparison.methods if result.method != comparison.reference]
    names = [name for name in comparison.metrics if name != comparison.headline and METRICS[name].pooled is None]
    subjects = [m for m in dict.fromkeys((comparison.champion, "cluster")) if m in methods]
    of_headline = scores.persona_means_by_seed(comparison.headline)
    column = {method: number for number, method in enumerate(scores.methods)}
    mixed: list[MixedModel] = []
    for method in subjects:
        differences = of_headline[:, column[method]] - of_headline[:, column[comparison.reference]]
        complete = differences[:, np.isfinite(differences).all(axis=0)]
        mixed.append(mixed_model(method, complete, scores.cluster_of_persona))
    return Appendix(
        headline=tuple(
            _difference(scores, comparison.headline, method, comparison.reference, Interval(np.nan, np.nan)) for method in methods
        ),
        others=tuple(_others(scores, names, methods, comparison, rng)),
        mixed=tuple(mixed),
    )


def _others(
    scores: PairedScores, names: Sequence[str], methods: Sequence[str], comparison: Comparison, rng: np.random.Generator
) -> Iterator[MetricDifference]:
    if not names or not methods:
        return
    reference = str(comparison.reference)
    column = {method: number for number, method in enumerate(scores.methods)}
    pairs = [(name, method) for name in names for method in methods]
    means = {name: scores.persona_means(name) for name in names}
    deltas = np.column_stack([means[name][:, column[m]] - means[name][:, column[reference]] for name, m in pairs])
    by_seed: dict[int, Float[np.ndarray, "persona seed"]] = {}
    for number, (name, method) in enumerate(pairs):
        of_seeds = scores.persona_means_by_seed(name)
        differences = of_seeds[:, column[method]] - of_seeds[:, column[reference]]
        common = differences[:, np.isfinite(differences).all(axis=0)]
        if common.shape[1] > 1:
            by_seed[number] = common
    intervals = simultaneous_intervals(deltas, rng=rng, by_seed=by_seed)
    for (name, method), interval in zip(pairs, intervals, strict=True):
        yield _difference(scores, name, method, reference, interval)


def _difference(scores: PairedScores, name: str, method: str, reference: str, interval: Interval) -> MetricDifference:
    means = scores.persona_means(name)
    delta = means[:, scores.methods.index(method)] - means[:, scores.methods.index(reference)]
    gains = delta if METRICS[name].higher_is_better else -delta
    return MetricDifference(
        metric=name, method=method, mean=float(delta.mean()), low=interval.low, high=interval.high, effect=effect_size(gains)
    )
