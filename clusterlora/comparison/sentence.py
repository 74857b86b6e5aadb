"""The verdict in words, generated from the numbers."""

from clusterlora.comparison.result import Comparison, MethodResult, PairedDifference
from clusterlora.evaluation.metrics import METRICS


def sentence(comparison: Comparison) -> str:
    """Return one or two sentences: who wins by how much and how surely, or that nobody does; and on whom it was measured."""
    return " ".join([_outcome(comparison), *_controlled(comparison), _basis(comparison)])


def _outcome(comparison: Comparison) -> str:
    champion = comparison.method(comparison.champion)
    others = [result for result in comparison.methods if result.method != comparison.champion]
    headline = METRICS[comparison.headline].label
    if not others:
        return f"{champion.method} is the only method: {headline} {_value(comparison, champion)}."
    if comparison.reference is None:
        return f"{champion.method} has the best {headline}, {_value(comparison, champion)}; there is no reference to test it against."
    if champion.vs_reference is not None:
        return (
            f"{champion.method} beats {comparison.reference}: {headline} {_value(comparison, champion)}, "
            f"{_difference(comparison, champion.vs_reference)}, better for {champion.vs_reference.win_rate:.0%} of the personas."
        )
    best_other = others[0].vs_reference
    assert best_other is not None, others[0].method
    return (
        f"No method is shown to beat {champion.method} ({headline} {_value(comparison, champion)}); "
        f"the best other, {others[0].method}, differs by {_difference(comparison, best_other)}."
    )


_CONTROLS = {
    "random_cluster": "a random partition of the same sizes",
    "unified_longer": "unified trained for the same steps",
    "unified_described": "unified with the persona's text in the prompt",
}


def _controlled(comparison: Comparison) -> list[str]:
    """Return a sentence about the controls, when there were some."""
    sign = 1.0 if METRICS[comparison.headline].higher_is_better else -1.0
    clauses = [
        f"{'beats' if contrast.difference.is_shown(sign) else 'is not shown to beat'} {_CONTROLS[contrast.control]} "
        f"({_difference(comparison, contrast.difference)})"
        for contrast in comparison.contrasts
    ]
    return [f"{comparison.contrasts[0].method} {'; '.join(clauses)}."] if clauses else []


def _value(comparison: Comparison, result: MethodResult) -> str:
    metric = METRICS[comparison.headline]
    return metric.format(result.means[comparison.headline]) + ("%" if metric.percent else "")


def _difference(comparison: Comparison, difference: PairedDifference) -> str:
    metric = METRICS[comparison.headline]
    low, high = metric.format(difference.ci_low, signed=True), metric.format(difference.ci_high, signed=True)
    p = "p < 0.001" if difference.p_holm < 0.001 else f"p = {difference.p_holm:.3f}"
    return f"{metric.format(difference.mean, signed=True)}{' points' if metric.percent else ''} [{low}, {high}], {p}"


def _basis(comparison: Comparison) -> str:
    if comparison.n_personas_left_out:
        n_all = comparison.n_personas + comparison.n_personas_left_out
        return f"Measured on {comparison.n_items} items of {comparison.n_personas} personas, the ones of {n_all} that every method answers."
    return f"Measured on {comparison.n_items} items of {comparison.n_personas} personas."
