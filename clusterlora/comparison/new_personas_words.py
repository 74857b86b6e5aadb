"""The leave-personas-out curve as a sentence and as a table."""

from collections.abc import Iterator

from clusterlora.comparison.new_personas import Gain, NewPersonas, Outcome
from clusterlora.evaluation.markdown import table
from clusterlora.evaluation.metrics import METRICS

HEADER = ("rule", "examples", "personas", "gain", "95% interval", "NLL gain", "95% interval ", "leave unified", "into their own cluster")
NUMERIC = (False, *(True for _ in HEADER[1:]))

_RULES = {
    "chosen": "margin of 1 standard error",
    "nearest": "smallest mean NLL, no margin",
    "own cluster": "their cluster in the study",
    "oracle": "best on the test items",
}


def sentence(found: NewPersonas) -> str:
    """Return whether choosing by examples beats unified for new people, from how many, and what there was to find."""
    able = [outcome for outcome in found.chosen if outcome.n_examples != 1]
    groups = (
        ("beats unified", [o for o in able if o.headline.low > 0]),
        ("is not shown to differ from unified", [o for o in able if o.headline.low <= 0 <= o.headline.high]),
        ("is worse than unified", [o for o in able if o.headline.high < 0]),
    )
    told = [f"{verb} by {', '.join(_by(found, o) for o in its)}" for verb, its in groups if its]
    parts = [f"For people the adapters never saw, choosing between the clusters and unified {'; it '.join(told)}."] if told else []
    if found.chosen[0].n_examples == 1:
        parts.append(
            "One example has no standard error, so by it everybody stays with unified; going to the cluster of the smallest NLL instead "
            f"would gain {_gained(found, found.nearest[0].headline)}."
        )
    own = found.own.headline
    parts.append(
        f"The cluster that the study gave them for all their train dialogues gains {_gained(found, own)}"
        + ("." if own.low > 0 else ", so there is nothing shown that choosing could find.")
    )
    return " ".join(parts)


def rows(found: NewPersonas) -> Iterator[tuple[str, ...]]:
    """Yield the table's cells, rule by rule."""
    metric = METRICS[found.metric]
    nll = METRICS["nll"]
    for outcome in (*found.chosen, *found.nearest, found.own, found.oracle):
        yield (
            _RULES[outcome.rule],
            "-" if outcome.n_examples is None else str(outcome.n_examples),
            str(outcome.n_personas),
            metric.shown(outcome.headline.mean, signed=True),
            f"{metric.shown(outcome.headline.low, signed=True)} to {metric.shown(outcome.headline.high, signed=True)}",
            nll.shown(outcome.nll.mean, signed=True),
            f"{nll.shown(outcome.nll.low, signed=True)} to {nll.shown(outcome.nll.high, signed=True)}",
            f"{outcome.leave:.0%}",
            "-" if outcome.own_cluster is None else f"{outcome.own_cluster:.0%}",
        )


def basis(found: NewPersonas) -> str:
    """Return what was measured, and how."""
    metric = METRICS[found.metric]
    return (
        f"{found.n_personas} people, drawn from every cluster, whom neither this unified nor these {found.n_clusters} cluster adapters "
        f"learned from; the clusters themselves were made with everybody. Gains are over unified on test items, in {metric.label}"
        f"{' points' if metric.percent else ''} and in nats per token, positive being better; intervals are over people and their items. "
        f"Choices read train examples only and are averaged over {found.n_draws} random orders of them. Into their own cluster: of those "
        "who leave unified, the share that goes where the study had put them."
    )


def markdown(found: NewPersonas) -> str:
    """Return a section of the summary."""
    return f"\n## A new persona\n\n**{sentence(found)}**\n\n{table(HEADER, list(rows(found)), right=NUMERIC)}\n{basis(found)}\n"


def off(held_out_share: float | None) -> str:
    """Return why there is no curve."""
    if held_out_share is None:
        return (
            "How well somebody new is given a cluster was not measured; run the study with `--set assignment.held_out_share=0.2` under "
            "another name."
        )
    return "How well somebody new is given a cluster is not known: what it is measured with was not trained or has not answered."


def _gained(found: NewPersonas, gain: Gain) -> str:
    metric = METRICS[found.metric]
    mean, low, high = (metric.shown(value, signed=True) for value in (gain.mean, gain.low, gain.high))
    return f"{mean}{' points' if metric.percent else ''} [{low}, {high}]"


def _by(found: NewPersonas, outcome: Outcome) -> str:
    return f"{outcome.n_examples} examples ({_gained(found, outcome.headline)}, {outcome.leave:.0%} leave unified)"
