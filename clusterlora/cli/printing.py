"""Tables on stdout that never cut a number: where the terminal is narrower, or there is none, lines are as long as they have to be."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from clusterlora.errors import harmless

if TYPE_CHECKING:
    from rich.console import RenderableType


def print_whole(renderable: "RenderableType") -> None:
    """Print to stdout; on a terminal no narrower than the content's longest words, elsewhere as wide as its longest lines."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    content = Measurement.get(console, console.options.update(max_width=10_000), renderable)
    needed = content.minimum if console.is_terminal else content.maximum
    if needed > console.width:
        console.width = needed
    console.print(renderable)


def echo_columns(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows as columns under their headings, control characters escaped; nothing when there are no rows."""
    from rich.cells import cell_len

    if not rows:
        return
    rows = [[harmless(cell) for cell in row] for row in rows]
    # A Chinese character takes two columns of a terminal, a combining accent none.
    widths = [max(cell_len(row[i]) for row in (heading, *rows)) for i in range(len(heading))]
    for row in (heading, *rows):
        click.echo("  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip())
