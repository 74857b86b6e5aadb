"""The comparison: a pure function of the evaluation rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from clusterlora.comparison.champion import choose_champion, find_obstacles
from clusterlora.comparison.differences import Scored
from clusterlora.comparison.pooled import pooled_values
from clusterlora.comparison.result import Comparison, Contrast, MethodResult, PairedDifference, RoutingBrackets
from clusterlora.comparison.roles import can_win, contrast_pairs, is_control
from clusterlora.comparison.scores import PairedScores, paired_scores
from clusterlora.comparison.sentence import sentence
from clusterlora.errors import BadData, BadSettings
from clusterlora.evaluation.cut import cut_by_method
from clusterlora.evaluation.shown import ShownExchanges
from clusterlora.evaluation.statistics import RESOLUTION, paired_bootstrap, shrunken_means
from clusterlora.values import EvaluationRow


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
    margin: float | Mapping[str, float] = 0.01,
    gate: str | None = None,
    tuning: str | None = None,
    beside: Sequence[str] = (),
    second_headline: str | None = None,
    shown: Mapping[str, ShownExchanges] | None = None,
) -> Comparison:
    """Return the comparison of all methods, best first, on the personas that every method answered.

    Differences are method minus reference, on persona means. Intervals are 95 % two-level paired bootstrap, tests are Wilcoxon's
    signed-rank over personas. Holm's correction is over families: the methods that could be champion, against the reference; the
    base model and the controls, against the reference; the contrasts; the methods that could be champion, against the base model. The
    champion is the best method with everything that `choose_champion` asks for, or nobody. The order of rows has no effect.

    Args:
        headline: the metric that decides.
        higher_is_better: the metrics to average with their directions; includes the headline.
        routed: the method that routes each persona to one of the others, controls excluded; `routing` brackets it.
        floor: where the normalised score is 0 (see `Comparison`). `floor_same_prompt`, `gate` and `shown` are copied.
        margin: the difference below which methods count as equivalent, in units of the metric: one, or by metric.
        beside: metrics whose differences to the reference are told beside the headline's; each is a family of tests of its own.
        second_headline: the one among them on which a champion must not be shown to be worse than the reference.

    Raises:
        BadData: methods differ in a persona's items, no persona is common, a score is missing or not finite, or all are controls.
        BadSettings: the headline is not among the metrics.
    """
    scores = _paired(rows, headline, tuple(higher_is_better))
    present_reference = reference if reference in scores.methods else None
    sign = 1.0 if higher_is_better[headline] else -1.0
    margins = {name: margin[name] if isinstance(margin, Mapping) else margin for name in (headline, *beside)}
    scored, *of_others = (_scored(scores, m, higher_is_better[m], draws=draws, rng=rng, margin=one) for m, one in margins.items())
    ceiling = float(sign * scores.means_of((sign * scores.of(headline)).max(axis=1, keepdims=True)).mean())
    others = dict(zip(beside, of_others, strict=True))
    methods = _ranked(scores, rows, headline, scored, present_reference, scale=(floor, ceiling), beside=others)
    obstacles = find_obstacles(scored, methods, floor=floor, second=second_headline)
    champion, no_champion = choose_champion(scored, methods, present_reference, n_items=len(scores.persona), obstacles=obstacles)
    same_answers = _same_answers(scores, headline, (present_reference, champion))
    settings: dict[str, Any] = {"draws": draws, "margin": scored.margin, "gate": gate, "tuning": tuning}
    comparison = Comparison(
        headline=headline,
        beside=tuple(beside),
        second_headline=second_headline,
        reference=present_reference,
        methods=methods,
        champion=champion,
        no_champion=no_champion,
        obstacles=obstacles,
        same_answers=same_answers,
        oracle=_oracle(scores, headline, sign),
        ceiling=ceiling,
        floor=floor,
        floor_same_prompt=floor_same_prompt,
        contrasts=_contrasts(scored, methods, champion or present_reference, present_reference, same_answers),
        routing=_routing(scores, headline, routed, sign),
        **_sample(scores, rows, shown or {}),
        **settings,
    )
    return replace(comparison, sentence=sentence(comparison))


def _scored(scores: PairedScores, metric: str, higher_is_better: bool, *, draws: int, rng: np.random.Generator, margin: float) -> Scored:
    drawn = paired_bootstrap(scores.of(metric), scores.persona, draws=draws, rng=rng)
    return Scored.of(scores, metric, drawn, 1.0 if higher_is_better else -1.0, margin)


def _sample(scores: PairedScores, rows: Sequence[EvaluationRow], shown: Mapping[str, ShownExchanges]) -> dict[str, Any]:
    """Return who and how much was compared, by which metrics, and what was cut or shown, as the fields of a comparison."""
    clusters, sizes = np.unique(scores.cluster_of_persona, return_counts=True)
    return {
        "cluster_sizes": dict(zip(clusters.tolist(), sizes.tolist(), strict=True)),
        "cluster_by_persona": dict(zip(scores.persona_ids, scores.cluster_of_persona.tolist(), strict=True)),
        "n_items_by_persona": dict(zip(scores.persona_ids, scores.n_items.tolist(), strict=True)),
        "n_personas": len(scores.persona_ids),
        "n_personas_left_out": scores.n_personas_left_out,
        "n_items": len(scores.persona),
        "n_with_one_dialogue": int(np.sum(~_has_two_dialogues(scores))),
        "n_seeds": scores.by_seed.shape[-1],
        "metrics": scores.metrics,
        "cut": cut_by_method(rows),
        "shown": shown,
    }


def _ranked(
    scores: PairedScores,
    rows: Sequence[EvaluationRow],
    headline: str,
    scored: Scored,
    reference: str | None,
    *,
    scale: tuple[float | None, float],
    beside: Mapping[str, Scored],
) -> tuple[MethodResult, ...]:
    """Return the results of all methods, best first, with the differences to the reference on the metrics beside the headline."""
    pooled = pooled_values(rows, set(scores.persona_ids), scores.metrics)
    results = _method_results(scores, headline, scored, _against_reference(scored, reference), scale=scale)
    differences = {metric: _against_reference(other, reference) for metric, other in beside.items()}
    full = [
        replace(
            result,
            means={**result.means, **pooled.get(result.method, {})},
            beside={metric: of[result.method] for metric, of in differences.items() if result.method in of},
        )
        for result in results
    ]
    return tuple(sorted(full, key=lambda result: -scored.sign * result.means[headline]))


def _against_reference(scored: Scored, reference: str | None) -> dict[str, PairedDifference]:
    """Return every method's difference to the reference; methods that can win are one family of tests, the others another."""
    if reference is None:
        return {}
    others = [method for method in scored.methods if method != reference]
    families = [[m for m in others if can_win(m)], [m for m in others if not can_win(m)]]
    return {
        method: difference
        for family in families
        for method, difference in zip(family, scored.family([(method, reference) for method in family]), strict=True)
    }


def _paired(rows: Sequence[EvaluationRow], headline: str, metrics: tuple[str, ...]) -> PairedScores:
    if headline not in metrics:
        raise BadSettings(f"headline metric {headline!r} is not among the metrics {', '.join(metrics)}; add it")
    scores = paired_scores(rows, metrics)
    if all(is_control(method) for method in scores.methods):
        raise BadData(f"{', '.join(scores.methods)}: controls alone were answered, and none can be champion; evaluate what they control")
    return scores


def _same_answers(scores: PairedScores, headline: str, others: Sequence[str | None]) -> dict[str, str]:
    """Return the methods that score as one of these others does on every item, with that other."""
    values = scores.of(headline)
    columns = {method: values[:, column] for column, method in enumerate(scores.methods)}
    same: dict[str, str] = {}
    for other in (other for other in others if other is not None):
        equal = (m for m, own in columns.items() if m not in others and np.abs(own - columns[other]).max() <= RESOLUTION)
        same |= {method: other for method in equal if method not in same}
    return same


def _contrasts(
    scored: Scored, best_first: Sequence[MethodResult], lead: str | None, reference: str | None, same_answers: Mapping[str, str]
) -> tuple[Contrast, ...]:
    """Return the contrasts of the champion with the runner-up and all controls, and of other methods with their own controls.

    Args:
        lead: the champion, else the reference.
        same_answers: methods that are the champion or the reference under another name, and so no runner-up.
    """
    pairs = contrast_pairs(lead, scored.methods, reference)
    if lead is not None and lead != reference:
        runners_up = (r.method for r in best_first if can_win(r.method) and r.method not in (lead, reference, *same_answers))
        pairs = [*((lead, runner_up) for runner_up in list(runners_up)[:1]), *pairs]
    return tuple(
        Contrast(method=method, other=other, is_control=is_control(other), difference=difference)
        for (method, other), difference in zip(pairs, scored.family(pairs), strict=True)
    )


def _method_results(
    scores: PairedScores,
    headline: str,
    scored: Scored,
    differences: Mapping[str, PairedDifference],
    *,
    scale: tuple[float | None, float],
) -> list[MethodResult]:
    sign = scored.sign
    shrunken = shrunken_means(scores.of(headline), scores.persona)
    means_by_metric = {metric: scores.persona_means(metric) for metric in scores.metrics}
    clusters = np.unique(scores.cluster_of_persona).tolist()
    results: list[MethodResult] = []
    for column, method in enumerate(scores.methods):
        own = means_by_metric[headline][:, column]
        worst = int(np.argmin(sign * own))
        interval = scored.interval(method)
        results.append(
            MethodResult(
                method=method,
                means={metric: float(means[:, column].mean()) for metric, means in means_by_metric.items()},
                mean_low=interval.low,
                mean_high=interval.high,
                vs_reference=differences.get(method),
                worst_persona_id=scores.persona_ids[worst],
                worst_persona=float(own[worst]),
                worst_shrunken=float(sign * (sign * shrunken[:, column]).min()),
                p5=float(sign * np.percentile(sign * own, 5)),
                normalised=_normalised(float(own.mean()), *scale, sign, scored.margin),
                by_persona=dict(zip(scores.persona_ids, own.tolist(), strict=True)),
                by_cluster={cluster: float(own[scores.cluster_of_persona == cluster].mean()) for cluster in clusters},
                beside={},
            )
        )
    return results


def _normalised(score: float, floor: float | None, ceiling: float, sign: float, margin: float) -> float | None:
    if floor is None or sign * (ceiling - floor) <= margin:
        return None
    return (score - floor) / (ceiling - floor)


def _routing(scores: PairedScores, headline: str, routed: str, sign: float) -> RoutingBrackets | None:
    choosable = [column for column, method in enumerate(scores.methods) if method != routed and not is_control(method)]
    if routed not in scores.methods or not choosable:
        return None
    random = float(scores.persona_means(headline)[:, choosable].mean())
    return RoutingBrackets(method=routed, random=random, oracle=_cross_fitted_best(scores, scores.of(headline)[:, choosable], sign))


def _oracle(scores: PairedScores, headline: str, sign: float) -> float:
    """Return the cross-fitted best of the methods that can win and of the base model; a control is never served."""
    candidates = [column for column, method in enumerate(scores.methods) if not is_control(method)]
    return _cross_fitted_best(scores, scores.of(headline)[:, candidates], sign)


def _cross_fitted_best(scores: PairedScores, values: Float[np.ndarray, "item choice"], sign: float) -> float:
    """Return the mean over personas of their best column: each half of a persona's dialogues scored by the column picked on the other.

    Picking and scoring on the same items is biased upwards (Cawley & Talbot 2010), and so is picking on one turn of a dialogue and
    scoring on another, which share its luck. A persona with a single dialogue cannot be split and counts with the mean of all columns.
    """
    is_odd = scores.dialogue % 2 == 1
    sums = [_persona_sums(values[half], scores.persona[half], len(scores.persona_ids)) for half in (~is_odd, is_odd)]
    picked = [np.argmax(sign * half, axis=1)[:, None] for half in sums]
    crossed = sum(np.take_along_axis(half, pick, axis=1)[:, 0] for half, pick in zip(sums, picked[::-1], strict=True))
    best = np.where(_has_two_dialogues(scores), crossed / scores.n_items, scores.means_of(values).mean(axis=1))
    return float(best.mean())


def _has_two_dialogues(scores: PairedScores) -> Bool[np.ndarray, " persona"]:
    """Return for whom there are two dialogues or more, which can be halved."""
    return np.bincount(scores.persona, weights=scores.dialogue) > 0


def _persona_sums(values: Float[np.ndarray, "item choice"], persona: np.ndarray, n_personas: int) -> Float[np.ndarray, "persona choice"]:
    sums = np.zeros((n_personas, values.shape[1]))
    np.add.at(sums, persona, values)
    return sums
