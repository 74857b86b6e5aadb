"""The appendix of a comparison in words and tables, for summary.md and the report."""

from collections.abc import Sequence

from clusterlora.comparison.appendix import Appendix, MetricDifference
from clusterlora.comparison.result import Comparison
from clusterlora.evaluation.markdown import markdown_table
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.mixed_model import MixedModel

EFFECTS = (
    "Effect size: the mean gain in standard deviations of people's gains (Cohen's d of paired differences with Hedges' correction); "
    "positive is better, whatever the metric."
)
OTHERS = (
    "All other metrics against the reference. The intervals are made to hold all together in 95 of 100 studies (single-step maximum of "
    "|t| over simulated studies of as many people, whose differences are normal; Westfall & Young 1993); where two or three "
    "training seeds differ much, they hold less often. They decide nothing: the verdict is the headline's."
)
MIXED = (
    "A check: the mean difference when clusters, people and training seeds are random effects (REML, Satterthwaite's degrees of "
    "freedom). It decides nothing. Its p is not corrected for the number of methods, and of a t-test; the verdict's is of a rank test and "
    "corrected, so that the two can differ for this alone."
)
NUMERIC = {"effects": (False, True, True), "others": (False, False, True, True, True), "mixed": (False, True, True, True, False)}

Table = tuple[tuple[str, ...], Sequence[tuple[str, ...]]]


def tables(below: Appendix, comparison: Comparison) -> list[tuple[str, str, Table, tuple[bool, ...]]]:
    """Return (title, sentence, header and rows, which columns are numbers) of every table of the appendix that has rows."""
    versus = f"vs {comparison.reference}"
    effects = [(one.method, METRICS[one.metric].format(one.mean, signed=True), _effect(one)) for one in below.headline]
    others = [
        (
            METRICS[one.metric].label,
            one.method,
            METRICS[one.metric].format(one.mean, signed=True),
            f"{METRICS[one.metric].format(one.low, signed=True)} to {METRICS[one.metric].format(one.high, signed=True)}",
            _effect(one),
        )
        for one in below.others
    ]
    mixed = [_mixed(model, comparison) for model in below.mixed]
    every: list[tuple[str, str, Table, tuple[bool, ...]]] = [
        ("Effect sizes", EFFECTS, (("method", versus, "effect size"), effects), NUMERIC["effects"]),
        ("Other metrics", OTHERS, (("metric", "method", versus, "95%, simultaneous", "effect size"), others), NUMERIC["others"]),
        ("Mixed model", MIXED, (("method", versus, "95% interval", "p", "standard deviations"), mixed), NUMERIC["mixed"]),
    ]
    return [entry for entry in every if entry[2][1]]


def markdown(below: Appendix, comparison: Comparison) -> str:
    """Return the appendix as Markdown; an empty string where there is nothing in it."""
    return "".join(
        f"\n{title}. {sentence}\n\n{markdown_table(header, rows, right=numeric)}"
        for title, sentence, (header, rows), numeric in tables(below, comparison)
    )


def _effect(one: MetricDifference) -> str:
    return "-" if one.effect is None else f"{one.effect:+.2f}"


def _mixed(model: MixedModel, comparison: Comparison) -> tuple[str, ...]:
    if model.failed is not None:
        return model.method, "-", "-", "-", f"not fitted: {model.failed}"
    metric = METRICS[comparison.headline]
    spread = ", ".join(f"{name} {metric.format(variance**0.5)}" for name, variance in model.variances.items())
    interval = f"{metric.format(model.low, signed=True)} to {metric.format(model.high, signed=True)}"
    return model.method, metric.format(model.mean, signed=True), interval, "<0.001" if model.p < 0.001 else f"{model.p:.3f}", spread
