"""`clusterlora study prune`: give back the disk that nothing needs any more."""

import json
from collections import Counter
from typing import TYPE_CHECKING

import click

from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.printing import echo_columns

if TYPE_CHECKING:
    from clusterlora.prune import Prunable

_EXAMPLES = """\b
Examples:
  clusterlora study prune                     what may go, and how much it frees; nothing is deleted
  clusterlora study prune --yes               delete it
  clusterlora study prune --study try-2       also the adapters of a study that is no longer wanted
"""


@click.command("prune", epilog=_EXAMPLES)
@click.option(
    "--study",
    "studies",
    multiple=True,
    help="Also what this study needs and no registered version or other study does; run again, it trains anew. Repeatable.",
)
@click.option("--yes", is_flag=True, help="Delete it.  [default: only say what would go]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prune(studies: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """List what no champion, registered version or study needs, and with --yes delete it here and in MLflow.

    That is: adapters that tried recipes or rungs of the gate's ladder, once the study is finished; and while no study runs, checkpoints of
    finished trainings, quarantined adapters, and copies that nobody has written to for an hour. Data, answers, scores and results stay.
    """
    from clusterlora.prune import prunable

    found = prunable(open_local_stores(keep_services_up=True), give_up=studies)
    n_listed = len(found)
    if yes:
        found = tuple(one for one in found if one.remove())
    here, there = (sum(sizes) for sizes in ([one.bytes_here for one in found], [one.bytes_in_tracker for one in found]))
    if as_json:
        click.echo(json.dumps({"deleted": yes, "bytes_here": here, "bytes_in_tracker": there, "what": [_record(one) for one in found]}))
        return
    echo_columns(("WHAT", "NAME", "STUDIES", "MB HERE", "MB IN MLFLOW"), [_row(one) for one in found])
    if n_stayed := n_listed - len(found):
        click.echo(f"{n_stayed} of {n_listed} stayed: a study that was started meanwhile needs them, or is running")
    if not n_listed:
        click.echo("nothing may go: all that is here is needed by a study, its champion or a registered version")
    if not found:
        return
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(one.what for one in found).items())
    click.echo(f"{kinds}: {here / 1e6:.1f} MB here, {there / 1e6:.1f} MB in MLflow {'were freed' if yes else 'would be freed; add --yes'}")


def _record(one: "Prunable") -> dict[str, object]:
    sizes = {"bytes_here": one.bytes_here, "bytes_in_tracker": one.bytes_in_tracker}
    return {"what": str(one.what), "name": one.name, "studies": list(one.studies), **sizes}


def _row(one: "Prunable") -> tuple[str, ...]:
    return (str(one.what), one.name, ", ".join(one.studies) or "-", f"{one.bytes_here / 1e6:.1f}", f"{one.bytes_in_tracker / 1e6:.1f}")
