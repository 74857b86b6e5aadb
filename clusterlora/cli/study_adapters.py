"""`clusterlora study adapters`: the adapters of single people as PEFT folders."""

import json
from pathlib import Path

import click

from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.printing import echo_columns
from clusterlora.errors import counted

_EXAMPLES = """\b
Examples:
  clusterlora study adapters demo --persona persona-0007
  clusterlora study adapters demo --out adapters/ --json
"""


@click.command("adapters", epilog=_EXAMPLES)
@click.argument("name")
@click.option("--persona", "persona_id", metavar="ID", help="Only those that learned from this person alone or with few others.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write to.  [default: studies/NAME/models]")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def adapters(name: str, persona_id: str | None, out: Path | None, as_json: bool) -> None:
    """Write the adapters of single people as PEFT folders, one per adapter, for any program that reads these.

    A study keeps them together, some hundred in a file; those of clusters and of everybody have folders from the start.
    """
    from clusterlora.stages.adapter_folders import write_adapter_folders

    stores = open_local_stores()
    target = out or stores.folder(name) / "models"
    written = write_adapter_folders(name, target, stores, persona_id=persona_id)
    if as_json:
        click.echo(json.dumps([{"adapter": one.name, "key": one.key, "folder": str(one.folder)} for one in written]))
        return
    click.echo(f"{counted(len(written), 'adapter')} in {target}")
    if persona_id is not None:
        echo_columns(("ADAPTER", "FOLDER"), [(one.name, str(one.folder)) for one in written])
