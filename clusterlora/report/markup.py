"""Escapes values for HTML: persona ids, prompts and answers are untrusted text and must show verbatim wherever they appear."""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence


def text(value: object) -> str:
    """Return a value escaped for an element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def label(value: str, *, longest: int = 60) -> str:
    """Return a value shortened and escaped for plotly labels and hovers, which interpret a few tags and entities."""
    return html.escape(value if len(value) <= longest else f"{value[: longest - 1]}…", quote=False)


def data_block(block_id: str, value: object) -> str:
    """Return a value as a JSON block that a script reads by its id. `<` is escaped, so no text can close the block."""
    encoded = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{block_id}">{encoded}</script>'


def script_hash(source: str) -> str:
    """Return the content security policy source expression that allows exactly this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[bool], caption: str) -> str:
    """Return a table of HTML cells; plain text must be escaped by `text` first."""
    kinds = ['class="number"' if is_number else "" for is_number in numeric]
    head = "".join(f'<th scope="col" {kind}>{cell}</th>' for cell, kind in zip(header, kinds, strict=True))
    body = "".join("<tr>" + "".join(f"<td {kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table><caption class="unseen">{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def pairs(named: Iterable[tuple[str, str]]) -> str:
    """Return names and values as a description list."""
    return '<dl class="pairs">' + "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in named) + "</dl>"


def interval_mark(value: float, low: float | None, high: float | None, *, threshold: float, scale: tuple[float, float], kind: str) -> str:
    """Return an inline SVG of a value, its interval and the threshold, on a common scale.

    Args:
        scale: values at the left and right end.
        kind: CSS class of the value: good, bad or even.
    """
    width, height = 150, 20
    start, end = scale

    def x(position: float) -> float:
        return 6 + (width - 12) * (min(max(position, start), end) - start) / ((end - start) or 1.0)

    line = "" if low is None or high is None else f'<line class="span" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="10" y2="10"/>'
    return (
        f'<svg class="interval {kind}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
        f'<line class="asked" x1="{x(threshold):.1f}" x2="{x(threshold):.1f}" y1="1" y2="19"/>{line}'
        f'<circle cx="{x(value):.1f}" cy="10" r="4"/></svg>'
    )
