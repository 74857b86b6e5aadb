"""`clusterlora assign`: which adapter of a study should answer somebody new."""

import json
from typing import TYPE_CHECKING

import click

from clusterlora.cli.here import stores_here
from clusterlora.cli.progress import console_log

if TYPE_CHECKING:
    from rich.table import Table

    from clusterlora.stages.assign import Assignment

_EXAMPLES = """\b
Examples:
  clusterlora assign --data new_persona.jsonl                     by the newest study
  clusterlora assign --data new_persona.jsonl --name people --json
  clusterlora assign --data log.csv --column persona_id=user --column response=answer
"""


@click.command(epilog=_EXAMPLES)
@click.option("--data", "path", required=True, help="Dialogues of people who are not in the study: a file or a folder.")
@click.option("--name", help="Study whose adapters are to choose from.  [default: the newest]")
@click.option("--source", help="How to read --data: table (a file) or edgewise (a folder).  [default: by what --data is]")
@click.option("--column", "columns", multiple=True, metavar="OURS=YOURS", help="A column of the table that has another name; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON record per persona.")
def assign(path: str, name: str | None, source: str | None, columns: tuple[str, ...], as_json: bool) -> None:
    """Choose a cluster or unified for new personas, by how well each adapter predicts the answers in their examples.

    One exchange is enough to be read; two are the least that can move somebody away from unified, because the gain has to exceed its
    standard error. Nothing is trained and nothing is stored.
    """
    from clusterlora.errors import UnknownName
    from clusterlora.stages.assign import assign as assign_personas
    from clusterlora.stages.assign import data_at

    stores = stores_here(works=True)
    if name is None:
        known = stores.studies.studies()
        if not known:
            raise UnknownName("there is no study yet; begin with: clusterlora study run --preset quick")
        name = known[0][0]
    pairs = tuple(_pair(column) for column in columns)
    with console_log() as log:
        assignments = assign_personas(name, data_at(path, source, pairs), stores, log)
    if as_json:
        from clusterlora.stages.assign import record

        click.echo(json.dumps([record(a) for a in assignments]))
        return
    from rich.console import Console

    Console().print(_table(name, assignments))
    for adapter in dict.fromkeys(a.adapter for a in assignments):
        one = next(a for a in assignments if a.adapter == adapter)
        registered = f"   registered as {one.model}" if one.model else ""
        click.echo(f"{adapter:<16} PEFT folder {one.folder}{registered}")


def _pair(column: str) -> tuple[str, str]:
    ours, equals, theirs = column.partition("=")
    if not (equals and ours and theirs):
        raise click.UsageError(f"--column {column!r}: write OURS=YOURS, for example persona_id=user")
    return ours, theirs


def _table(study_name: str, assignments: "tuple[Assignment, ...]") -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from clusterlora.stages.assign import HEADER, NOTE, cells

    drawn = Table(box=box.SIMPLE_HEAD, title=f"New personas of {study_name}", title_justify="left", caption=NOTE, caption_justify="left")
    for position, heading in enumerate(HEADER):
        drawn.add_column(heading, justify="right" if 0 < position < len(HEADER) - 1 else "left")
    for assignment in assignments:
        # Text, not str: persona ids are shown as they are, never read as markup.
        drawn.add_row(*(Text(cell) for cell in cells(assignment)))
    return drawn
