"""The comparison: a pure function of the evaluation rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from clusterlora.comparison.result import Comparison, Contrast, MethodResult, PairedDifference, RoutingBrackets
from clusterlora.comparison.scores import PairedScores, paired_scores
from clusterlora.comparison.sentence import sentence
from clusterlora.errors import BadSettings
from clusterlora.evaluation.statistics import (
    RESOLUTION,
    bootstrap_interval,
    holm,
    paired_bootstrap,
    shrunken_means,
    signed_rank_p,
    wilson_interval,
)
from clusterlora.methods.method import CONTROLS
from clusterlora.values import EvaluationRow

_CONTRASTS = (("cluster", "random_cluster"), ("cluster", "unified_longer"), ("cluster", "unified_described"))
"""(method, control): what is left of the clusters' gain without alikeness, for the same training, and beside words."""


def compare_methods(
    rows: Sequence[EvaluationRow],
    *,
    headline: str,
    higher_is_better: Mapping[str, bool],
    draws: int,
    rng: np.random.Generator,
    reference: str = "unified",
    routed: str = "selective_routing",
    floor: float | None = None,
    floor_same_prompt: float | None = None,
) -> Comparison:
    """Return all methods side by side on the personas that every one of them answered, the best first.

    Differences are method minus reference, on persona means. Intervals are 95 % two-level paired bootstrap, tests are Wilcoxon's
    signed-rank over personas with Holm's correction over methods. The champion is the best method whose interval and corrected
    test both say it beats the reference; else the reference; without a reference, the method with the best mean.
    The order of the rows changes nothing.

    Args:
        headline: the metric that decides.
        higher_is_better: the metrics to average, and which way each points; holds the headline.
        draws: draws of the bootstrap.
        routed: the method that chooses among the others, controls aside; it gets brackets.
        floor: what somebody else's reference scores, in units of the headline; where the normalised score is 0.
        floor_same_prompt: the same for the most similar prompt; passed through.

    Raises:
        BadData: methods differ in the items of a persona, no persona is common, or a score is missing or not finite.
        BadSettings: the headline is not among the metrics.
    """
    if headline not in higher_is_better:
        raise BadSettings(f"headline metric {headline!r} is not among the metrics {', '.join(higher_is_better)}; add it")
    scores = paired_scores(rows, tuple(higher_is_better))
    present_reference = reference if reference in scores.methods else None
    sign = 1.0 if higher_is_better[headline] else -1.0
    draws_of_means = paired_bootstrap(scores.of(headline), scores.persona, draws=draws, rng=rng)
    means = scores.persona_means(headline)
    ceiling = float(sign * scores.means_of((sign * scores.of(headline)).max(axis=1, keepdims=True)).mean())
    differences = _differences(means, draws_of_means, scores.methods, present_reference, sign)
    results = _method_results(scores, headline, draws_of_means, differences, sign, scale=(floor, ceiling))
    methods = tuple(sorted(results, key=lambda result: -sign * result.means[headline]))
    clusters, sizes = np.unique(scores.cluster_of_persona, return_counts=True)
    comparison = Comparison(
        headline=headline,
        metrics=scores.metrics,
        reference=present_reference,
        methods=methods,
        champion=_champion(methods, present_reference, sign),
        oracle=float(sign * (sign * means).max(axis=1).mean()),
        ceiling=ceiling,
        floor=floor,
        floor_same_prompt=floor_same_prompt,
        contrasts=_contrasts(means, draws_of_means, scores.methods, sign),
        routing=_routing(means, scores.methods, routed, sign),
        cluster_sizes=dict(zip(clusters.tolist(), sizes.tolist(), strict=True)),
        cluster_by_persona=dict(zip(scores.persona_ids, scores.cluster_of_persona.tolist(), strict=True)),
        n_items_by_persona=dict(zip(scores.persona_ids, scores.n_items.tolist(), strict=True)),
        n_personas=len(scores.persona_ids),
        n_personas_left_out=scores.n_personas_left_out,
        n_items=len(scores.persona),
        draws=draws,
        sentence="",
    )
    return replace(comparison, sentence=sentence(comparison))


def _differences(
    means: Float[np.ndarray, "persona method"],
    draws_of_means: Float[np.ndarray, "draw method"],
    methods: Sequence[str],
    reference: str | None,
    sign: float,
) -> dict[str, PairedDifference]:
    if reference is None:
        return {}
    base = methods.index(reference)
    tested = [(column, method) for column, method in enumerate(methods) if column != base]
    deltas = means - means[:, [base]]
    p_values = np.array([signed_rank_p(deltas[:, column]) for column, _ in tested])
    return {
        method: _paired_difference(deltas[:, column], draws_of_means[:, column] - draws_of_means[:, base], p, p_holm, sign)
        for (column, method), p, p_holm in zip(tested, p_values.tolist(), holm(p_values).tolist(), strict=True)
    }


def _paired_difference(
    delta: Float[np.ndarray, " persona"], draws_of_delta: Float[np.ndarray, " draw"], p: float, p_holm: float, sign: float
) -> PairedDifference:
    interval = bootstrap_interval(draws_of_delta, delta)
    n_wins = int(np.sum(sign * delta > RESOLUTION))
    win_interval = wilson_interval(n_wins, len(delta))
    return PairedDifference(
        mean=float(delta.mean()),
        ci_low=interval.low,
        ci_high=interval.high,
        p=p,
        p_holm=p_holm,
        win_rate=n_wins / len(delta),
        win_low=win_interval.low,
        win_high=win_interval.high,
        tie_rate=float(np.mean(np.abs(delta) <= RESOLUTION)),
    )


def _contrasts(
    means: Float[np.ndarray, "persona method"], draws_of_means: Float[np.ndarray, "draw method"], methods: Sequence[str], sign: float
) -> tuple[Contrast, ...]:
    """Return the contrasts whose method and control are both there, their p-values corrected for one another."""
    present = [(m, c, methods.index(m), methods.index(c)) for m, c in _CONTRASTS if m in methods and c in methods]
    p_values = np.array([signed_rank_p(means[:, i] - means[:, j]) for _, _, i, j in present])
    return tuple(
        Contrast(
            method=method,
            control=control,
            difference=_paired_difference(means[:, i] - means[:, j], draws_of_means[:, i] - draws_of_means[:, j], p, p_holm, sign),
        )
        for (method, control, i, j), p, p_holm in zip(present, p_values.tolist(), holm(p_values).tolist(), strict=True)
    )


def _method_results(
    scores: PairedScores,
    headline: str,
    draws_of_means: Float[np.ndarray, "draw method"],
    differences: Mapping[str, PairedDifference],
    sign: float,
    *,
    scale: tuple[float | None, float],
) -> list[MethodResult]:
    shrunken = shrunken_means(scores.of(headline), scores.persona)
    means_by_metric = {metric: scores.persona_means(metric) for metric in scores.metrics}
    clusters = np.unique(scores.cluster_of_persona).tolist()
    results: list[MethodResult] = []
    for column, method in enumerate(scores.methods):
        own = means_by_metric[headline][:, column]
        worst = int(np.argmin(sign * own))
        mean_interval = bootstrap_interval(draws_of_means[:, column], own)
        results.append(
            MethodResult(
                method=method,
                means={metric: float(means[:, column].mean()) for metric, means in means_by_metric.items()},
                mean_low=mean_interval.low,
                mean_high=mean_interval.high,
                vs_reference=differences.get(method),
                worst_persona_id=scores.persona_ids[worst],
                worst_persona=float(own[worst]),
                worst_shrunken=float(sign * (sign * shrunken[:, column]).min()),
                p5=float(sign * np.percentile(sign * own, 5)),
                normalised=_normalised(float(own.mean()), *scale, sign),
                by_persona=dict(zip(scores.persona_ids, own.tolist(), strict=True)),
                by_cluster={cluster: float(own[scores.cluster_of_persona == cluster].mean()) for cluster in clusters},
            )
        )
    return results


def _normalised(score: float, floor: float | None, ceiling: float, sign: float) -> float | None:
    if floor is None or sign * (ceiling - floor) <= RESOLUTION:
        return None
    return (score - floor) / (ceiling - floor)


def _routing(means: Float[np.ndarray, "persona method"], methods: Sequence[str], routed: str, sign: float) -> RoutingBrackets | None:
    choosable = [column for column, method in enumerate(methods) if method not in (routed, *CONTROLS)]
    if routed not in methods or not choosable:
        return None
    choices = means[:, choosable]
    return RoutingBrackets(method=routed, random=float(choices.mean()), oracle=float(sign * (sign * choices).max(axis=1).mean()))


def _champion(best_first: Sequence[MethodResult], reference: str | None, sign: float) -> str:
    if reference is None:
        return best_first[0].method
    return next((r.method for r in best_first if r.vs_reference is not None and r.vs_reference.is_shown(sign)), reference)
