"""`clusterlora assign`: choose the adapter of a study that answers a new persona."""

import json
from typing import TYPE_CHECKING

import click

from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.progress import console_log

if TYPE_CHECKING:
    from rich.table import Table

    from clusterlora.stages.assign import Assignment

_EXAMPLES = """\b
Examples:
  clusterlora assign --data new_persona.jsonl                     with the newest study
  clusterlora assign --data new_persona.jsonl --name people --json
  clusterlora assign --data log.csv --column persona_id=user --column response=answer
"""


@click.command(epilog=_EXAMPLES)
@click.option("--data", "path", required=True, help="Dialogues of personas who are not in the study: a file or a folder.")
@click.option("--name", help="Study whose adapters to choose from.  [default: the newest]")
@click.option("--source", help="How to read --data: table (a file) or edgewise (a folder).  [default: by the type of --data]")
@click.option("--column", "columns", multiple=True, metavar="OURS=YOURS", help="Name of a column in your table; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON record per persona.")
def assign(path: str, name: str | None, source: str | None, columns: tuple[str, ...], as_json: bool) -> None:
    """Choose a cluster or unified for new personas, by how well each adapter predicts the responses in their dialogues.

    One exchange per persona is required. A persona with fewer than two dialogues stays with unified, because the gain must exceed its
    standard error, by more the more clusters there are. Nothing is trained or stored.
    """
    from clusterlora.errors import UnknownName
    from clusterlora.stages.assign import assign as assign_personas
    from clusterlora.stages.assign import data_at

    stores = open_local_stores(keep_services_up=True)
    if name is None:
        studies = stores.studies.studies()
        if not studies:
            raise UnknownName("there is no study yet; start with: clusterlora study run --preset quick")
        name = studies[0][0]
    pairs = tuple(_pair(column) for column in columns)
    with console_log() as log:
        assignments = assign_personas(name, data_at(path, source, pairs), stores, log)
    if as_json:
        from clusterlora.stages.assign import record

        click.echo(json.dumps([record(a) for a in assignments]))
        return
    from clusterlora.cli.printing import print_whole

    print_whole(_table(name, assignments))
    for adapter in dict.fromkeys(a.adapter for a in assignments):
        assignment = next(a for a in assignments if a.adapter == adapter)
        registered = f"   registered as {assignment.model}" if assignment.model else ""
        click.echo(f"{adapter:<16} PEFT folder {assignment.folder}{registered}")


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

    table = Table(box=box.SIMPLE_HEAD, title=f"New personas of {study_name}", title_justify="left", caption=NOTE, caption_justify="left")
    for position, heading in enumerate(HEADER):
        table.add_column(heading, justify="right" if 0 < position < len(HEADER) - 1 else "left")
    for assignment in assignments:
        # Text, not str: persona ids are not interpreted as markup.
        table.add_row(*(Text(cell) for cell in cells(assignment)))
    return table
