"""A verdict as Markdown, for the Prefect artifact, MLflow and the console."""

from collections.abc import Sequence

from clusterlora.errors import counted
from clusterlora.evaluation.markdown import cell, markdown_table
from clusterlora.values import Criterion, Verdict


def markdown(verdict: Verdict) -> str:
    """Return the verdict with every number, interval and reason; shares in percent."""
    failed = [c.name for c in verdict.criteria if not c.passed]
    outcome = "passed" if verdict.passed else f"refused ({', '.join(failed)})"
    return (
        f"## Gate {outcome}\n\n"
        f"Adapter **{cell(verdict.adapter)}**, rung **{cell(verdict.rung)}**, judged on {sample(verdict)} "
        "against unified on the same items. "
        f"{_units(verdict)}\n\n"
        + markdown_table(
            ("criterion", "value", "95% interval", "asked", "verdict", "why"),
            [_row(criterion) for criterion in verdict.criteria],
            right=(False, True, True, True, False, False),
        )
        + "".join(f"\n{note}\n" for note in verdict.notes)
    )


def sample(verdict: Verdict) -> str:
    """Return what a verdict was judged on."""
    return f"{counted(verdict.n_items, 'val item')} of {counted(verdict.n_personas, 'persona')}"


def ending(verdicts: Sequence[Verdict], rung: str, *, n_rungs: int) -> str:
    """Return, in a sentence, which rung the cluster adapters are of and what the gate said of it.

    Args:
        verdicts: those of every rung that was tried.
        rung: the decided one.
        n_rungs: how many there were to try, the study's own included.
    """
    tried = [verdict.rung for verdict in verdicts]
    if any(verdict.passed for verdict in verdicts):
        refused = tried[: tried.index(rung)]
        after = f" after {_enumerated(refused)} {'were' if len(refused) > 1 else 'was'} refused" if refused else ""
        return f"The cluster adapters are those of rung {rung}, which passed the gate{after}."
    if len(tried) == n_rungs:
        refused = f"all {n_rungs} rungs" if n_rungs > 1 else "the only rung"
    else:
        refused = f"the {len(tried)} rungs that were tried" if len(tried) > 1 else f"rung {tried[0]}, and no other was tried"
    return f"The gate refused {refused}; the cluster adapters are those of rung {rung}."


def records(verdict: Verdict) -> list[dict[str, str]]:
    """Return the verdict as one record per criterion, and the outcome as the last."""
    names = ("criterion", "value", "interval", "asked", "verdict", "why")
    outcome = (
        "gate",
        "",
        "",
        "",
        "PASSED" if verdict.passed else "REFUSED",
        sample(verdict),
    )
    return [dict(zip(names, row, strict=True)) for row in (*(_row(criterion) for criterion in verdict.criteria), outcome)]


def _units(verdict: Verdict) -> str:
    if all(criterion.percent for criterion in verdict.criteria):
        return "Numbers are percent; a difference is in points."
    gains = " and ".join(criterion.name for criterion in verdict.criteria if not criterion.percent)
    return f"Numbers are percent; {gains} is in units of the metric, positive where the adapter is better."


def _row(criterion: Criterion) -> tuple[str, ...]:
    interval = "-"
    if criterion.ci_low is not None and criterion.ci_high is not None:
        interval = f"{criterion.format(criterion.ci_low)} to {criterion.format(criterion.ci_high)}"
    at_least = ">=" if criterion.name == "share_of_personas_improved" else ">"
    return (
        criterion.name,
        criterion.format(criterion.value),
        interval,
        f"{at_least} {criterion.format(criterion.threshold)}",
        "pass" if criterion.passed else "fail",
        criterion.explanation,
    )


def _enumerated(names: Sequence[str]) -> str:
    """Return the names as in a sentence: a, b and c."""
    return " and ".join((*([", ".join(names[:-1])] if len(names) > 1 else []), names[-1]))
