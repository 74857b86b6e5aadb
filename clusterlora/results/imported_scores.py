"""Scores that older scripts left, shown beside a study's own and part of none of its statistics."""

from clusterlora.evaluation.markdown import markdown_table
from clusterlora.metadata import ImportedScores

CAUTION = (
    "As the older scripts wrote them. Their items, answers and metrics are not this study's: these numbers are shown beside its results "
    "and are part of no statistic."
)
HEADER = ("file", "metric", "personas", "mean")


def imported_rows(imported: ImportedScores | None) -> tuple[tuple[str, str, str, str], ...]:
    """Return (file, metric, personas, mean) of all imported scores, as text."""
    return tuple(
        (file, metric, str(len(scores)), f"{sum(scores.values()) / len(scores):.4g}")
        for file, metrics in (imported.scores_by_file if imported else {}).items()
        for metric, scores in metrics.items()
    )


def imported_markdown(imported: ImportedScores | None) -> str:
    """Return the imported scores as a section of Markdown; empty without any."""
    rows = imported_rows(imported)
    return f"\n## Imported scores\n\n{CAUTION}\n\n{markdown_table(HEADER, rows, right=(False, False, True, True))}" if rows else ""
