"""Scores that older scripts left, shown beside a study's own and part of none of its statistics."""

from collections.abc import Mapping
from typing import Any

from clusterlora.evaluation.markdown import table

RESULTS_FACT = "imported_results"
"""The study's fact that holds {file: {metric: {persona: number}}}."""

CAUTION = (
    "As the older scripts wrote them. Their items, answers and metrics are not this study's: these numbers are shown beside its results "
    "and are part of no statistic."
)
HEADER = ("file", "metric", "personas", "mean")


def imported_rows(facts: Mapping[str, Any]) -> tuple[tuple[str, str, str, str], ...]:
    """Return (file, metric, personas, mean) of all imported scores, as text."""
    return tuple(
        (file, metric, str(len(scores)), f"{sum(scores.values()) / len(scores):.4g}")
        for file, metrics in facts.get(RESULTS_FACT, {}).items()
        for metric, scores in metrics.items()
    )


def imported_markdown(facts: Mapping[str, Any]) -> str:
    """Return the imported scores as a section of Markdown; empty without any."""
    rows = imported_rows(facts)
    return f"\n## Imported scores\n\n{CAUTION}\n\n{table(HEADER, rows, right=(False, False, True, True))}" if rows else ""
