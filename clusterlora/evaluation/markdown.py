"""Markdown tables whose cells may contain any text: persona ids are data."""

import html
import re
from collections.abc import Sequence

_ESCAPES = str.maketrans({"\\": "&#92;", "|": "\\|", "`": "&#96;", "[": "&#91;"})
_TAG = re.compile(r"<(?=[A-Za-z/!?])")


def cell(text: str) -> str:
    """Return text escaped for one cell: no row break, HTML, link or code."""
    one_line = " ".join(text.split()).replace("&", "&amp;")
    return _TAG.sub("&lt;", one_line.translate(_ESCAPES))


def as_plain_text(markdown: str) -> str:
    """Return Markdown to be read as it stands: its escaped characters as themselves."""
    return html.unescape(markdown).replace("\\|", "|")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[bool]) -> str:
    """Return a table with escaped cells; `right` marks right-aligned columns."""
    lines = [
        "| " + " | ".join(cell(name) for name in header) + " |",
        "|" + "|".join("---:" if is_right else "---" for is_right in right) + "|",
        *("| " + " | ".join(cell(text) for text in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
