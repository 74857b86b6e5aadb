"""Results of a study in the terminal: verdict, table, seconds per phase, and where everything is."""

from pathlib import Path

import click
from rich.console import Console
from rich.markdown import Markdown

from clusterlora.gate.report import markdown
from clusterlora.planning.study_state import read_state
from clusterlora.ports.stores import Stores
from clusterlora.progress.timeline import next_step
from clusterlora.progress.timing import seconds_by_phase
from clusterlora.wiring import from_environment
from deployments.local_services import LocalServices
from deployments.prefect_client import StudySnapshot
from deployments.terminal_view import format_duration


def print_results(study_name: str, ended: StudySnapshot, services: LocalServices) -> None:
    """Print the results of a finished study, or why it failed."""
    # Without a tracker: nothing is logged here, and importing MLflow takes seconds.
    addresses = {name: value for name, value in services.environment().items() if name != "MLFLOW_TRACKING_URI"}
    stores = from_environment(addresses)
    if ended.completed:
        _print_outcome(study_name, stores)
    else:
        _print_failure(ended, services)
    click.echo(f"\ntime {format_duration(ended.parent.seconds)}")
    for phase, seconds in seconds_by_phase(stores.studies.seconds(study_name)).items():
        click.echo(f"  {phase:<17} {format_duration(seconds):>8}")
    click.echo(f"\nresults  {stores.folder(study_name)}")
    click.echo(f"Prefect  {services.addresses.prefect}/runs/flow-run/{ended.parent.id}")
    click.echo(f"MLflow   {services.addresses.mlflow}")
    if ended.completed:
        click.echo(f"next     {next_step(read_state(study_name, stores))}")


def _print_outcome(study_name: str, stores: Stores) -> None:
    results = stores.folder(study_name) / "results"
    console = Console()
    for verdict in stores.studies.verdicts(study_name):
        _print_markdown(console, markdown(verdict))
    summary = results / "summary.md"
    if summary.is_file():
        _print_markdown(console, summary.read_text(encoding="utf-8"))
        click.echo(f"figure   {_relative(results / 'figures' / 'comprehensive_comparison.png')}")


def _print_failure(ended: StudySnapshot, services: LocalServices) -> None:
    click.echo(f"\nThe study ended {ended.parent.state}: {ended.parent.message}")
    for run in ended.runs:
        if run.state in ("Failed", "Crashed", "OutOfMemory"):
            click.echo(f"  {run.name}: {run.state}: {run.message}")
    click.echo(f"The workers' output is in {services.home / 'logs'}. Run the same command again to continue.")


def _print_markdown(console: Console, text: str) -> None:
    """Render Markdown in a terminal; print its source elsewhere."""
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        click.echo(text)


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
