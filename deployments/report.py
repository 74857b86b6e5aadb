"""What is printed when a study's run has ended: table, verdict, where everything is, and where the time went."""

from pathlib import Path

import click
from rich.console import Console
from rich.markdown import Markdown

from clusterlora.gate.report import markdown
from clusterlora.ports import Stores
from clusterlora.stages.timing import seconds_by_phase
from clusterlora.wiring import from_environment
from deployments.observe import Snapshot
from deployments.stack import Stack
from deployments.view import clock


def report(study_name: str, ended: Snapshot, stack: Stack) -> None:
    """Print the outcome of a study."""
    # Reading needs no tracker, and importing MLflow costs seconds.
    addresses = {name: value for name, value in stack.environment().items() if name != "MLFLOW_TRACKING_URI"}
    stores = from_environment(addresses)
    if ended.completed:
        _results(study_name, stores)
    else:
        _failure(ended, stack)
    click.echo(f"\ntime {clock(ended.parent.seconds)}")
    for phase, seconds in seconds_by_phase(stores.studies.seconds(study_name)).items():
        click.echo(f"  {phase:<17} {clock(seconds):>8}")
    click.echo(f"\nresults  {stores.folder(study_name)}")
    click.echo(f"Prefect  {stack.addresses.prefect}/runs/flow-run/{ended.parent.id}")
    click.echo(f"MLflow   {stack.addresses.mlflow}")


def _results(study_name: str, stores: Stores) -> None:
    results = stores.folder(study_name) / "results"
    console = Console()
    for verdict in stores.studies.verdicts(study_name):
        _print(console, markdown(verdict))
    summary = results / "summary.md"
    if summary.is_file():
        _print(console, summary.read_text(encoding="utf-8"))
        click.echo(f"figure   {_shown(results / 'figures' / 'comprehensive_comparison.png')}")


def _failure(ended: Snapshot, stack: Stack) -> None:
    click.echo(f"\nThe study ended {ended.parent.state}: {ended.parent.message}")
    for run in ended.runs:
        if run.state in ("Failed", "Crashed", "OutOfMemory"):
            click.echo(f"  {run.name}: {run.state}: {run.message}")
    click.echo(f"The workers' output is in {stack.home / 'logs'}. The same command again continues where it stopped.")


def _print(console: Console, text: str) -> None:
    """Draw Markdown in a terminal; elsewhere leave it as it is, to be pasted or read by programs."""
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        click.echo(text)


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
