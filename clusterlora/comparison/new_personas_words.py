"""The leave-personas-out curve as a sentence and as a table."""

from collections.abc import Iterator

from clusterlora.comparison.champion import LEAST_ITEMS, LEAST_PERSONAS
from clusterlora.comparison.new_personas import Gain, NewPersonas, RuleOutcome
from clusterlora.errors import counted
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.evaluation.metrics import METRICS

HEADER = ("rule", "dialogues", "personas", "gain", "95% interval", "NLL gain", "95% interval ", "leave unified", "into their own cluster")
NUMERIC = (False, *(True for _ in HEADER[1:]))

_RULES = {
    "chosen": "margin of 1 standard error",
    "nearest": "smallest mean NLL, no margin",
    "own cluster": "their cluster in the study",
    "oracle": "best on half of the test dialogues, scored on the rest",
}


def sentence(curve: NewPersonas) -> str:
    """Return whether choosing by dialogues beats unified for new personas, with how many, and the gain of their study cluster.

    As everywhere, few people or items have no verdict.
    """
    if not curve.own.has_verdict:
        people = f"{counted(curve.own.n_personas, 'persona')} and {counted(curve.own.n_items, 'item')}"
        least = f"it takes {LEAST_PERSONAS} personas and {LEAST_ITEMS} items"
        return f"No verdict on people the adapters never saw, as {people} are too few: {least}."
    with_standard_error = [outcome for outcome in curve.chosen if outcome.n_dialogues != 1]
    enough = [outcome for outcome in with_standard_error if outcome.has_verdict]
    groups = (
        ("beats unified", [o for o in enough if o.headline.low > 0]),
        ("is not shown to differ from unified", [o for o in enough if o.headline.low <= 0 <= o.headline.high]),
        ("is worse than unified", [o for o in enough if o.headline.high < 0]),
    )
    clauses = [f"{verb} by {', '.join(_format_outcome(curve, o) for o in outcomes)}" for verb, outcomes in groups if outcomes]
    parts = [f"For people the adapters never saw, choosing between the clusters and unified {'; it '.join(clauses)}."] if clauses else []
    if len(enough) < len(with_standard_error):
        few = ", ".join(f"{o.n_dialogues} dialogues ({counted(o.n_personas, 'persona')})" for o in with_standard_error if not o.has_verdict)
        parts.append(f"There is no verdict by {few}: it takes {LEAST_PERSONAS} personas who have so many, and {LEAST_ITEMS} test items.")
    if curve.chosen[0].n_dialogues == 1:
        parts.append(
            "One dialogue has no standard error, so by it everybody stays with unified; going to the cluster of the smallest NLL instead "
            f"would gain {_format_gain(curve, curve.nearest[0].headline)}."
        )
    own = curve.own.headline
    parts.append(
        f"The cluster that the study gave them for all their train dialogues gains {_format_gain(curve, own)}"
        + ("." if own.low > 0 else ", so there is nothing shown that choosing could find.")
    )
    return " ".join(parts)


def rows(curve: NewPersonas) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table, rule by rule."""
    metric = METRICS[curve.metric]
    nll = METRICS["nll"]
    for outcome in (*curve.chosen, *curve.nearest, curve.own, *([curve.oracle] if curve.oracle else [])):
        yield (
            _RULES[outcome.rule],
            "-" if outcome.n_dialogues is None else str(outcome.n_dialogues),
            str(outcome.n_personas),
            metric.format(outcome.headline.mean, signed=True),
            f"{metric.format(outcome.headline.low, signed=True)} to {metric.format(outcome.headline.high, signed=True)}",
            nll.format(outcome.nll.mean, signed=True),
            f"{nll.format(outcome.nll.low, signed=True)} to {nll.format(outcome.nll.high, signed=True)}",
            f"{outcome.leave:.0%}",
            "-" if outcome.own_cluster is None else f"{outcome.own_cluster:.0%}",
        )


def basis(curve: NewPersonas) -> str:
    """Return how the curve was measured."""
    metric = METRICS[curve.metric]
    return (
        f"{curve.n_personas} people, drawn from every cluster, whom neither this unified nor these {curve.n_clusters} cluster adapters "
        f"learned from; the clusters themselves were made with everybody. Gains are over unified on test items, in {metric.label}"
        f"{' points' if metric.percent else ''} and in nats per token, positive being better; intervals are over people and their items. "
        f"Choices read train dialogues only and are averaged over {curve.n_draws} random orders of them. Into their own cluster: of those "
        "who leave unified, the share that goes where the study had put them. The margin is one standard error for "
        f"one cluster and grows with their number, as one of many exceeds it by luck more often.{_undivided(curve)}"
    )


def markdown(curve: NewPersonas) -> str:
    """Return the curve as a section of the summary."""
    return f"\n## A new persona\n\n**{sentence(curve)}**\n\n{markdown_table(HEADER, list(rows(curve)), right=NUMERIC)}\n{basis(curve)}\n"


def off(held_out_share: float | None) -> str:
    """Return the reason why there is no curve."""
    if held_out_share is None:
        return (
            "How well somebody new is given a cluster was not measured; run the study with `--set assignment.held_out_share=0.2` under "
            "another name."
        )
    return "How well somebody new is given a cluster is not known: what it is measured with was not trained or has not answered."


def _undivided(curve: NewPersonas) -> str:
    """Return how many people are not in the last row, as they have no halves to pick and to score on."""
    n = curve.n_personas - (curve.oracle.n_personas if curve.oracle else 0)
    if not n:
        return ""
    if not curve.oracle:
        return " Nobody has two test dialogues to pick by and to be scored on, so there is no row of what is best on half of them."
    return f" {n} of them {'has' if n == 1 else 'have'} one test dialogue and {'is' if n == 1 else 'are'} not in the last row."


def _format_gain(curve: NewPersonas, gain: Gain) -> str:
    metric = METRICS[curve.metric]
    mean, low, high = (metric.format(value, signed=True) for value in (gain.mean, gain.low, gain.high))
    return f"{mean}{' points' if metric.percent else ''} [{low}, {high}]"


def _format_outcome(curve: NewPersonas, outcome: RuleOutcome) -> str:
    return f"{outcome.n_dialogues} dialogues ({_format_gain(curve, outcome.headline)}, {outcome.leave:.0%} leave unified)"
