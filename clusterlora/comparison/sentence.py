"""The verdict sentence of a comparison, generated from its numbers."""

from collections.abc import Iterator

from clusterlora.comparison.champion import LEAST_ITEMS, LEAST_PERSONAS
from clusterlora.comparison.result import Comparison, Contrast, MethodResult, PairedDifference, ShownOutcome
from clusterlora.comparison.roles import can_win, deciding_control, is_base
from clusterlora.errors import counted
from clusterlora.evaluation.cut import WORTH_A_WORD
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
    """Return the verdict: the champion with its gain, certainty and cause, or why there is none; the losers; gate and
    tuning; the sample.

    With fewer personas or items than a verdict needs, it says what is missing and judges no method.
    """
    gate = [one for one in (comparison.gate, comparison.tuning) if one]
    if not comparison.has_verdict:
        return " ".join([_too_few(comparison), *gate, _basis(comparison), *_cut(comparison)])
    parts = [*_no_champion(comparison), *_outcome(comparison), *_beside(comparison), *_contrasted(comparison), *_others(comparison)]
    return " ".join([*parts, *_worse_than_floor(comparison), *gate, *_shown_exchanges(comparison), _basis(comparison), *_cut(comparison)])


def heading(comparison: Comparison) -> str:
    """Return what a figure has room for: the champion with its gain, certainty and cause, or why there is none; the sample."""
    if not comparison.has_verdict:
        return sentence(comparison)
    return " ".join([*_no_champion(comparison), *_outcome(comparison), _basis(comparison)])


def _too_few(comparison: Comparison) -> str:
    size = f"{counted(comparison.n_items, 'test item')} of {counted(comparison.n_personas, 'persona')}"
    lacking = [
        *(["more people"] if comparison.n_personas < LEAST_PERSONAS else []),
        *(["more test dialogues per person (data.test)"] if comparison.n_items < LEAST_ITEMS else []),
    ]
    return (
        f"No verdict{'' if comparison.champion else ' and no champion'}, as {size} are too few: a verdict takes {LEAST_PERSONAS} personas "
        f"and {LEAST_ITEMS} items. "
        f"Give {' and '.join(lacking)}."
    )


def _no_champion(comparison: Comparison) -> Iterator[str]:
    """Yield why there is no champion, where there is none."""
    missing = comparison.no_champion
    if missing is None:
        return
    value = "" if missing.method is None else f"{missing.method} ({_value(comparison, comparison.method(missing.method))})"
    if missing.reason == "floor":
        assert comparison.floor is not None
        yield f"No champion: {value} is not shown to be better than {_floor(comparison, comparison.floor)}."
    elif missing.reason == "base model":
        assert missing.difference is not None
        shown = f"{format_difference(comparison, missing.difference)}: {explain(comparison, missing.difference)}"
        yield f"No champion: {value} is not shown to beat the base model without an adapter ({shown})."
    elif missing.reason == "second headline":
        assert missing.difference is not None
        assert comparison.second_headline is not None
        metric = METRICS[comparison.second_headline]
        shown = format_difference(comparison, missing.difference, metric.name)
        yield f"No champion: {value} is shown to be worse than {comparison.reference} on the second headline, {metric.label} ({shown})."
    elif missing.reason == "lowest":
        yield f"No champion: {_nothing(comparison, 'nothing')} is shown to beat {value}, and its mean is the worst of all."
    elif missing.reason == "no reference":
        yield "No champion: unified, which a champion must beat, was not compared; add it to methods, or train and evaluate it."
    else:
        yield "No champion: only the base model and controls were compared."


def _outcome(comparison: Comparison) -> Iterator[str]:
    """Yield what was found of the champion, or else of the reference and the best other method."""
    headline = METRICS[comparison.headline].label
    name = comparison.lead or comparison.methods[0].method
    lead = comparison.method(name)
    value = f"{headline} {_value(comparison, lead)}"
    others = [result for result in comparison.methods if result.method != name]
    if not others:
        yield f"{name} is the only method: {value}."
    elif comparison.reference is None:
        yield f"{name} has the best {value}."
    elif lead.vs_reference is not None:
        yield (
            f"{name} beats {comparison.reference}: {value}, {format_difference(comparison, lead.vs_reference)}, "
            f"{shares(lead.vs_reference)}{_robust(comparison, lead.vs_reference)}; {_claim(comparison, name)}."
        )
    else:
        yield _best_other(comparison, value)
    if comparison.champion is not None and not any(is_base(result.method) for result in comparison.methods):
        yield f"Whether {comparison.champion} beats the base model is not known, as that was not compared."
    same = [f"{method} scores as {other} does" for method, other in comparison.same_answers.items()]
    if same:
        yield f"On every item {'; '.join(same)}."


def _best_other(comparison: Comparison, value: str) -> str:
    """Return how the best method beside the reference differs from it, where none is champion over the reference."""
    best = beside_reference(comparison)
    if best is not None and best.vs_reference is not None and _is_winner(best):
        difference = format_difference(comparison, best.vs_reference)
        return f"{best.method} is shown to beat {comparison.reference} ({value}), {difference}; {_claim(comparison, best.method)}."
    first = f"{_nothing(comparison, 'No method')} is shown to beat {comparison.reference} ({value})"
    if best is None or best.vs_reference is None:
        return f"{first}: every other one scores as it does."
    difference = format_difference(comparison, best.vs_reference)
    others = (other for other in comparison.methods if other.vs_reference is not None and other.method not in comparison.same_answers)
    which = "the best other" if best is next(others, best) else "the best other that can be champion"
    return f"{first}; {which}, {best.method}, differs by {difference}: {explain(comparison, best.vs_reference)}."


def _nothing(comparison: Comparison, words: str) -> str:
    """Return the words that no method is meant by, and where a control or the base model is shown to beat the reference, of which kind."""
    shown = any(result.vs_reference is not None and result.vs_reference.outcome == "better" for result in comparison.methods)
    return f"{words} that can be champion" if shown else words


def beside_reference(comparison: Comparison) -> MethodResult | None:
    """Return the one method that the verdict tells of beside the reference: the champion, else one that is shown to beat the reference,
    else the best; None where every other method is the reference under another name."""
    others = [result for result in comparison.methods if result.vs_reference is not None]
    champion = [result for result in others if result.method == comparison.champion]
    distinct = [result for result in others if result.method not in comparison.same_answers]
    winners = [result for result in others if _is_winner(result)]
    return next(iter([*champion, *winners, *(result for result in distinct if can_win(result.method)), *distinct]), None)


def _is_winner(result: MethodResult) -> bool:
    """Return whether a method that can be champion is shown to beat the reference."""
    return can_win(result.method) and result.vs_reference is not None and result.vs_reference.outcome == "better"


def _shown_exchanges(comparison: Comparison) -> Iterator[str]:
    """Yield what was chosen on val for the prompts of methods with retrieval, what that costs, and what of it did not fit; or that a
    champion stood against none of these methods."""
    is_refresh = any(METHODS[result.method].needs_refresh for result in comparison.methods if result.method in METHODS)
    # A refresh compares the champion alone; whether retrieval does better was asked of the study before it.
    if comparison.champion is not None and not is_refresh and not any(_retrieves(result.method) for result in comparison.methods):
        yield "Whether retrieved examples do better is not known, as no method with them was compared."
    means = {result.method: result.means for result in comparison.methods}
    clauses: list[str] = []
    for method, shown in comparison.shown.items():
        tokens = means[method].get("prompt_tokens")
        beside = means[comparison.reference].get("prompt_tokens") if comparison.reference else None
        than = f" where {comparison.reference} reads {beside:.0f}" if beside is not None else ""
        cost = f", {tokens:.0f} prompt tokens{than}" if tokens is not None and shown.n_shown else ""
        dropped = f", {shown.share_dropped:.0%} of them dropped at model.max_length" if shown.n_dropped else ""
        clauses.append(f"{method} {shown.chosen}{cost}{dropped}")
    if clauses:
        yield f"Shown in the prompts, as chosen on val: {'; '.join(clauses)}."


def _worse_than_floor(comparison: Comparison) -> Iterator[str]:
    """Yield the methods that are worse than what sets the floor, where there are any."""
    worse = [result for result in comparison.methods if comparison.is_worse_than_floor(result)]
    if worse and comparison.floor is not None:
        methods = "; ".join(f"{result.method} ({_value(comparison, result)})" for result in worse)
        yield f"Worse than {_floor(comparison, comparison.floor)}: {methods}."


def _floor(comparison: Comparison, floor: float) -> str:
    return f"the floor of {_shown(comparison, floor)}, what {METRICS[comparison.headline].floor_is} scores"


def _claim(comparison: Comparison, method: str) -> str:
    """Return whether a method's gain is due to personalisation, which is claimed only if the method beats its control."""
    control = deciding_control(method)
    if control is None:
        return "no control of this study tests whether that is because of who the people are"
    cause, contrast = METHODS[control].cause, comparison.contrast(method, control)
    if contrast is None:
        return f"without the control {control} nothing tests whether that is because {cause}"
    if _shows_cause(contrast):
        return f"and because {cause}: {_contrast(comparison, contrast)}"
    return f"that this is because {cause} is not shown: {_contrast(comparison, contrast)}"


def claims_personalisation(comparison: Comparison) -> bool:
    """Return whether the verdict says that people gain because of who they are."""
    method = _winner(comparison)
    control = deciding_control(method) if method is not None else None
    contrast = comparison.contrast(method, control) if method is not None and control is not None else None
    return comparison.has_verdict and contrast is not None and _shows_cause(contrast)


def _winner(comparison: Comparison) -> str | None:
    """Return the method that the verdict says beats the reference, champion or not; None without one."""
    best = beside_reference(comparison)
    return best.method if best is not None and _is_winner(best) else None


def _shows_cause(contrast: Contrast) -> bool:
    """Return whether a method beats its control by more than a few adapters' luck may give it."""
    return contrast.difference.outcome == "better" and not contrast.difference.may_be_luck


def _beside(comparison: Comparison) -> Iterator[str]:
    """Yield how the champion, or the best other method, does on the metrics beside the headline."""
    subject = beside_reference(comparison)
    if subject is None or not can_win(subject.method):
        return
    if subject.beside:
        clauses = [
            f"{METRICS[metric].label} {_mean(subject, metric)} ({format_difference(comparison, difference, metric)}: "
            f"{explain(comparison, difference, metric)}{', on the second headline' if metric == comparison.second_headline else ''})"
            for metric, difference in subject.beside.items()
        ]
        yield f"Beside it, {subject.method} against {comparison.reference}: {'; '.join(clauses)}."
    obstacle = comparison.obstacles.get(subject.method)
    if _is_winner(subject) and obstacle is not None and obstacle.reason == "second headline":
        yield f"That is why {subject.method} is not champion."


def _mean(result: MethodResult, metric: str) -> str:
    return METRICS[metric].format(result.means[metric]) + ("%" if METRICS[metric].percent else "")


def _contrasted(comparison: Comparison) -> Iterator[str]:
    """Yield a sentence per method with contrasts, except the one that the claim is about."""
    winner = _winner(comparison)
    claim = (winner, deciding_control(winner)) if winner else None
    for method in dict.fromkeys((comparison.champion, *(contrast.method for contrast in comparison.contrasts))):
        clauses = [c for c in comparison.contrasts if c.method == method and (c.method, c.other) != claim]
        if clauses:
            first, *rest = (_contrast(comparison, contrast) for contrast in clauses)
            yield "; ".join([first, *(clause.removeprefix(f"{method} ") for clause in rest)]) + "."


def _contrast(comparison: Comparison, contrast: Contrast) -> str:
    difference = contrast.difference
    other = METHODS[contrast.other].phrase if contrast.is_control else _rival(comparison, contrast)
    is_shown = difference.outcome in ("better", "worse")
    certainty = _luck(comparison, difference) if is_shown else f": {explain(comparison, difference)}"
    return f"{contrast.method} {_VERBS[difference.outcome]} {other} ({format_difference(comparison, difference)}{certainty})"


def _rival(comparison: Comparison, contrast: Contrast) -> str:
    """Return what the best other method is called: its mean may be the better one, if it lacks something that a champion must have."""
    return f"{contrast.other}, whose mean is better" if comparison.is_ahead(contrast) else f"the runner-up {contrast.other}"


def _retrieves(method: str) -> bool:
    return method in METHODS and METHODS[method].retrieves


def _others(comparison: Comparison) -> Iterator[str]:
    """Yield the other methods that are shown to be better or worse than the reference."""
    metric = METRICS[comparison.headline]
    named = (comparison.champion, comparison.no_champion.method if comparison.no_champion else None)
    for outcome in ("better", "worse"):
        methods = [
            f"{result.method}{'' if outcome == 'worse' or can_win(result.method) else ', which cannot be champion'} "
            f"({metric.format(result.vs_reference.mean, signed=True)})"
            for result in comparison.methods
            if result.method not in named and result.vs_reference and result.vs_reference.outcome == outcome
        ]
        if methods:
            yield f"{OUTCOMES[outcome].capitalize()} than {comparison.reference}: {'; '.join(methods)}."


def _value(comparison: Comparison, result: MethodResult) -> str:
    return _shown(comparison, result.means[comparison.headline])


def _shown(comparison: Comparison, score: float) -> str:
    metric = METRICS[comparison.headline]
    return metric.format(score) + ("%" if metric.percent else "")


def format_difference(comparison: Comparison, difference: PairedDifference, metric_name: str | None = None) -> str:
    """Return mean, interval and corrected p-value, of the headline unless another metric is named."""
    metric = METRICS[metric_name or comparison.headline]
    low, high = metric.format(difference.ci_low, signed=True), metric.format(difference.ci_high, signed=True)
    p = "p < 0.001" if difference.p_holm < 0.001 else f"p = {difference.p_holm:.3f}"
    return f"{metric.difference(difference.mean)} [{low}, {high}], {p}"


def shares(difference: PairedDifference) -> str:
    """Return the shares of wins, ties and losses over personas as a phrase."""
    win, tie, loss = difference.win_tie_loss
    return f"better for {win}%, equal for {tie}% and worse for {loss}% of the personas"


def explain(comparison: Comparison, difference: PairedDifference, metric_name: str | None = None) -> str:
    """Return an outcome as a phrase: its direction, the margin of equivalence, or the difference the study could have detected.

    Args:
        metric_name: what was compared, if not the headline.
    """
    metric = METRICS[metric_name or comparison.headline]
    if difference.outcome == "equivalent":
        return f"equivalent within {metric.difference(difference.margin, signed=False)}"
    if difference.outcome != "undecided":
        return OUTCOMES[difference.outcome]
    if difference.detectable is None:
        return f"not told apart, as no difference could be shown with {counted(comparison.n_personas, 'persona')}"
    return (
        f"not told apart, as so few people and items show a difference of "
        f"{metric.difference(difference.detectable, signed=False)} or more four times in five"
    )


def _robust(comparison: Comparison, difference: PairedDifference) -> str:
    """Return the cluster-robust interval if it includes 0, and the gains by cluster if their signs differ; else an empty string."""
    metric, words = METRICS[comparison.headline], _luck(comparison, difference)
    if difference.clusters_disagree:
        gains = ", ".join(metric.format(gain, signed=True) for gain in difference.by_cluster.values())
        words += f", by cluster {gains}"
    return words


def _luck(comparison: Comparison, difference: PairedDifference) -> str:
    """Return the interval that holds if people who share adapters share their luck, where it includes 0; else an empty string."""
    if not difference.may_be_luck or difference.robust_low is None or difference.robust_high is None:
        return ""
    metric = METRICS[comparison.headline]
    low, high = metric.format(difference.robust_low, signed=True), metric.format(difference.robust_high, signed=True)
    return f", though not if people who share an adapter share its luck [{low}, {high}]"


def _cut(comparison: Comparison) -> Iterator[str]:
    """Yield what was cut: the methods with more than a few such answers, and the references that no answer may reach."""
    cut = {result.method: comparison.cut[result.method] for result in comparison.methods if result.method in comparison.cut}
    marked = [f"{share:.0%} of {method}'s" for method, counts in cut.items() if (share := counts.share) > WORTH_A_WORD]
    if marked:
        yield f"Cut at evaluation.max_new_tokens before they ended: {', '.join(marked)} answers; their scores are of beginnings."
    longer = max((counts.share_of_references for counts in cut.values()), default=0.0)
    if longer > WORTH_A_WORD:
        yield f"{longer:.0%} of the references are longer than evaluation.max_new_tokens: raise it."


def _basis(comparison: Comparison) -> str:
    seeds = f", {comparison.n_seeds} trainings each" if comparison.n_seeds > 1 else ""
    n_all = comparison.n_personas + comparison.n_personas_left_out
    common = f", the ones of {n_all} that every method answers" if comparison.n_personas_left_out else ""
    return f"Measured on {counted(comparison.n_items, 'item')} of {counted(comparison.n_personas, 'persona')}{common}{seeds}."
