"""`clusterlora backup` and `clusterlora restore`: a whole installation in one file."""

import json
import os
from pathlib import Path
from typing import Any

import click

from clusterlora.cli.orchestration import deployments, results_here, services_home
from clusterlora.cli.persona import forget_restored
from clusterlora.cli.progress import echo_stderr
from clusterlora.errors import ClusterLoraError, counted

_BACKUP_EXAMPLES = """\b
Examples:
  clusterlora backup monday.tar
  clusterlora backup monday.tar --with-passwords     with the servers' passwords, API keys and Prefect's blocks
"""


@click.command(epilog=_BACKUP_EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--with-passwords", is_flag=True, help="Also copy the servers' passwords, API keys, Prefect's blocks, MLflow's webhooks and keys."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def backup(file: Path, with_passwords: bool, as_json: bool) -> None:
    """Write studies, adapters, MLflow and Prefect to FILE, a tar archive; studies and servers may run meanwhile.

    Every database is copied as it is at one moment, through SQLite's backup API or pg_dump; links are followed. Base models
    are not in it, and neither are servers elsewhere. Whoever can read FILE can read everybody's dialogues.
    """
    _tell_of_servers_elsewhere()
    _report(deployments("backup").back_up(_place(), file, with_passwords=with_passwords), file, "written", as_json=as_json)


@click.command(epilog="\b\nExample:\n  clusterlora restore monday.tar && clusterlora study verify\n")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print what was restored as JSON.")
def restore(file: Path, as_json: bool) -> None:
    """Put a backup into an empty installation, after every digest in it was checked.

    It goes to CLUSTERLORA_HOME, CLUSTERLORA_STACK_HOME and CLUSTERLORA_DATABASE_URL, which must hold nothing yet, and hold nothing
    after an error. Studies then go on where they were: their adapters are found by key. Who was forgotten here after the backup was made
    is forgotten again; until then no command uses what was restored.
    """
    from clusterlora.stores.departures import TO_FORGET

    place = _place()
    _report(deployments("restore").restore(place, file), file, "restored", as_json=as_json)
    if (place.results / TO_FORGET).is_file():
        echo_stderr("people who left after it was made are in it, and are forgotten again before anything else can use it")
        try:
            forget_restored()
        except ClusterLoraError as problem:
            raise type(problem)(f"{problem}; then: clusterlora persona forget --restored") from problem
    if not as_json:
        click.echo("check it with: clusterlora study verify")


def _place() -> Any:
    """Return the installation that the other commands of this shell use."""
    home, results = services_home(), results_here()
    return deployments("backup").Place(
        results=Path(results["CLUSTERLORA_HOME"]), services=home, database=results["CLUSTERLORA_DATABASE_URL"]
    )


def _tell_of_servers_elsewhere() -> None:
    """Say which servers the environment names: their data are where they run."""
    for variable, what in (("MLFLOW_TRACKING_URI", "MLflow"), ("PREFECT_API_URL", "Prefect")):
        if address := os.environ.get(variable):
            echo_stderr(f"{variable} names a server ({address.rpartition('@')[2]}); {what} is in the backup only if it is the local one")


def _report(manifest: Any, file: Path, what: str, *, as_json: bool) -> None:
    record = {
        "file": str(file),
        "created": manifest.created,
        "files": len(manifest.files),
        "adapters": manifest.n_adapters,
        "adapters_without_weights": manifest.without_weights,
        "bytes": manifest.size_bytes,
        "database": manifest.database,
        "with_passwords": manifest.with_passwords,
    }
    if without := manifest.without_weights:
        echo_stderr(
            f"{counted(len(without), 'adapter')} without weights in it, for example {without[0]}: "
            "neither the results nor the local MLflow have them; see clusterlora study verify"
        )
    if as_json:
        click.echo(json.dumps(record))
        return
    click.echo(
        f"{what}: {counted(manifest.n_adapters, 'adapter')}, {counted(len(manifest.files), 'file')}, {manifest.size_bytes / 1e6:.1f} MB, "
        f"{manifest.database} study database, {'with' if manifest.with_passwords else 'no'} passwords"
    )
