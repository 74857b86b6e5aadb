"""The verdict sentence of a comparison, generated from its numbers."""

from collections.abc import Iterator

from clusterlora.comparison.result import Comparison, Contrast, MethodResult, PairedDifference, ShownOutcome
from clusterlora.comparison.roles import can_win, deciding_control
from clusterlora.evaluation.metrics import METRICS
from clusterlora.methods import METHODS

OUTCOMES: dict[ShownOutcome, str] = {
    "better": "shown to be better",
    "worse": "shown to be worse",
    "equivalent": "equivalent",
    "undecided": "not told apart",
}
_VERBS: dict[ShownOutcome, str] = {
    "better": "beats",
    "worse": "is shown to be worse than",
    "equivalent": "is equivalent to",
    "undecided": "is not told apart from",
}


def sentence(comparison: Comparison) -> str:
    """Return the verdict: the winner with its gain, certainty and cause, or that there is none; the losers; the gate; the sample."""
    gate = [comparison.gate] if comparison.gate else []
    return " ".join([_outcome(comparison), *_contrasted(comparison), *_others(comparison), *gate, _basis(comparison)])


def _outcome(comparison: Comparison) -> str:
    champion = comparison.method(comparison.champion)
    headline = METRICS[comparison.headline].label
    value = f"{headline} {_value(comparison, champion)}"
    others = [result for result in comparison.methods if result.method != comparison.champion]
    if not others:
        return f"{champion.method} is the only method: {value}."
    if comparison.reference is None:
        return f"{champion.method} has the best {value}; there is no reference to test it against."
    if champion.vs_reference is not None:
        return (
            f"{champion.method} beats {comparison.reference}: {value}, {format_difference(comparison, champion.vs_reference)}, "
            f"{shares(champion.vs_reference)}{_robust(comparison, champion.vs_reference)}; {_claim(comparison)}."
        )
    best = next((result for result in others if can_win(result.method)), others[0])
    assert best.vs_reference is not None, best.method
    return (
        f"No method is shown to beat {champion.method} ({value}); the best other, {best.method}, differs by "
        f"{format_difference(comparison, best.vs_reference)}: {explain(comparison, best.vs_reference)}."
    )


def _claim(comparison: Comparison) -> str:
    """Return whether the champion's gain is due to personalisation, which is claimed only if the champion beats its control."""
    champion = comparison.champion
    control = deciding_control(champion)
    if control is None:
        return "no control of this study tests whether that is because of who the people are"
    cause, contrast = METHODS[control].cause, comparison.contrast(champion, control)
    if contrast is None:
        return f"without the control {control} nothing tests whether that is because {cause}"
    if contrast.difference.outcome == "better":
        return f"and because {cause}: {_contrast(comparison, contrast)}"
    return f"that this is because {cause} is not shown: {_contrast(comparison, contrast)}"


def _contrasted(comparison: Comparison) -> Iterator[str]:
    """Yield a sentence per method with contrasts, except the one that the claim is about."""
    claim = (comparison.champion, deciding_control(comparison.champion)) if comparison.reference else None
    for method in dict.fromkeys((comparison.champion, *(contrast.method for contrast in comparison.contrasts))):
        clauses = [c for c in comparison.contrasts if c.method == method and (c.method, c.other) != claim]
        if clauses:
            first, *rest = (_contrast(comparison, contrast) for contrast in clauses)
            yield "; ".join([first, *(clause.removeprefix(f"{method} ") for clause in rest)]) + "."


def _contrast(comparison: Comparison, contrast: Contrast) -> str:
    difference = contrast.difference
    other = METHODS[contrast.other].phrase if contrast.is_control else f"the runner-up {contrast.other}"
    certainty = "" if difference.outcome in ("better", "worse") else f": {explain(comparison, difference)}"
    return f"{contrast.method} {_VERBS[difference.outcome]} {other} ({format_difference(comparison, difference)}{certainty})"


def _others(comparison: Comparison) -> Iterator[str]:
    """Yield the other methods that are shown to be better or worse than the reference."""
    metric = METRICS[comparison.headline]
    for outcome in ("better", "worse"):
        methods = [
            f"{result.method}{'' if outcome == 'worse' or can_win(result.method) else ', which cannot be champion'} "
            f"({metric.format(result.vs_reference.mean, signed=True)})"
            for result in comparison.methods
            if result.method != comparison.champion and result.vs_reference and result.vs_reference.outcome == outcome
        ]
        if methods:
            yield f"{OUTCOMES[outcome].capitalize()} than {comparison.reference}: {'; '.join(methods)}."


def _value(comparison: Comparison, result: MethodResult) -> str:
    metric = METRICS[comparison.headline]
    return metric.format(result.means[comparison.headline]) + ("%" if metric.percent else "")


def format_difference(comparison: Comparison, difference: PairedDifference) -> str:
    """Return mean, interval and corrected p-value."""
    metric = METRICS[comparison.headline]
    low, high = metric.format(difference.ci_low, signed=True), metric.format(difference.ci_high, signed=True)
    p = "p < 0.001" if difference.p_holm < 0.001 else f"p = {difference.p_holm:.3f}"
    return f"{metric.format(difference.mean, signed=True)}{_points(comparison)} [{low}, {high}], {p}"


def shares(difference: PairedDifference) -> str:
    """Return the shares of wins, ties and losses over personas as a phrase."""
    win, tie, loss = difference.win_rate, difference.tie_rate, difference.loss_rate
    return f"better for {win:.0%}, equal for {tie:.0%} and worse for {loss:.0%} of the personas"


def explain(comparison: Comparison, difference: PairedDifference) -> str:
    """Return an outcome as a phrase: its direction, the margin of equivalence, or the difference the study could have detected."""
    metric = METRICS[comparison.headline]
    if difference.outcome == "equivalent":
        return f"equivalent within {metric.format(comparison.margin)}{_points(comparison)}"
    if difference.outcome != "undecided":
        return OUTCOMES[difference.outcome]
    if difference.detectable is None:
        return f"not told apart, as no difference could be shown with {comparison.n_personas} personas"
    return (
        f"not told apart, as so few people and items show a difference of "
        f"{metric.format(difference.detectable)}{_points(comparison)} or more four times in five"
    )


def _robust(comparison: Comparison, difference: PairedDifference) -> str:
    """Return the cluster-robust interval if it includes 0, and the gains by cluster if their signs differ; else an empty string."""
    metric = METRICS[comparison.headline]
    words = ""
    if difference.robust_low is not None and difference.robust_high is not None and difference.robust_low <= 0 <= difference.robust_high:
        low, high = metric.format(difference.robust_low, signed=True), metric.format(difference.robust_high, signed=True)
        words = f", though not if the people of a cluster share their luck [{low}, {high}]"
    if difference.clusters_disagree:
        gains = ", ".join(metric.format(gain, signed=True) for gain in difference.by_cluster.values())
        words += f", by cluster {gains}"
    return words


def _points(comparison: Comparison) -> str:
    return " points" if METRICS[comparison.headline].percent else ""


def _basis(comparison: Comparison) -> str:
    seeds = f", {comparison.n_seeds} trainings each" if comparison.n_seeds > 1 else ""
    n_all = comparison.n_personas + comparison.n_personas_left_out
    common = f", the ones of {n_all} that every method answers" if comparison.n_personas_left_out else ""
    return f"Measured on {comparison.n_items} items of {comparison.n_personas} personas{common}{seeds}."
