"""Records as CSV that a spreadsheet shows and does not run."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

_RUN_BY_SPREADSHEETS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula begins with, also in the full-width signs of East Asian keyboards, and what some programs skip before it."""


def csv_text(records: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Return records as CSV with a header, by default the fields of the first; None is an empty field.

    A text that a spreadsheet would take for a formula gets an apostrophe before it. Source: OWASP, CSV Injection.
    """
    columns = list(records[0]) if columns is None else columns
    out = io.StringIO()
    plain, quoted = (csv.writer(out, lineterminator="\n", quoting=quoting) for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    plain.writerow(columns)
    for record in records:
        cells = [_cell(record[name]) for name in columns]
        # The writer quotes its own line break and no other, and readers end a row at any.
        (quoted if any("\r" in cell for cell in cells if isinstance(cell, str)) else plain).writerow(cells)
    return out.getvalue()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_RUN_BY_SPREADSHEETS) else value
