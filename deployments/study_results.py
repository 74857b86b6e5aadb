"""Results of a study in the terminal: verdict, table, seconds per phase, and where everything is."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import click
from rich.cells import cell_len
from rich.console import Console
from rich.markdown import Markdown

from clusterlora.evaluation.markdown import as_plain_text
from clusterlora.gate.report import markdown
from clusterlora.planning.study_state import read_state
from clusterlora.ports.stores import Stores
from clusterlora.progress.timeline import next_step
from clusterlora.progress.timing import seconds_by_phase
from clusterlora.wiring import from_environment
from deployments.local_services import LocalServices
from deployments.prefect_client import StudySnapshot
from deployments.terminal_view import format_duration

_BETWEEN_CELLS = re.compile(r"(?<!\\)\|")
_PADDING = 3
"""Characters beside the text of a column, and at the end of a row."""


def stores_without_tracker(services: LocalServices) -> Stores:
    """Return the stores of the services without MLflow: nothing is logged by who only reads, and importing it takes seconds."""
    return from_environment({name: value for name, value in services.environment().items() if name != "MLFLOW_TRACKING_URI"})


def print_results(study_name: str, ended: StudySnapshot, services: LocalServices) -> None:
    """Print the results of a finished study, or why it failed."""
    stores = stores_without_tracker(services)
    if ended.completed:
        _print_outcome(study_name, stores)
    else:
        _print_failure(ended, services)
    click.echo(f"\ntime {format_duration(ended.parent.seconds)}")
    for phase, seconds in seconds_by_phase(stores.studies.seconds(study_name)).items():
        click.echo(f"  {phase:<17} {format_duration(seconds):>8}")
    click.echo(f"\nresults  {stores.folder(study_name)}")
    click.echo(f"Prefect  {services.addresses.prefect}/runs/flow-run/{ended.parent.id}")
    state = read_state(study_name, stores)
    click.echo(f"MLflow   {state.page or services.addresses.mlflow}")
    if ended.completed:
        click.echo(f"next     {next_step(state)}")


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
    """Render Markdown in a terminal; print its source elsewhere. Tables are as wide as their longest words need: rich would cut numbers."""
    if not console.is_terminal:
        click.echo(as_plain_text(text))
        return
    width = console.width
    for is_table, lines in groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        block = list(lines)
        console.width = max(width, _least_width(block)) if is_table else width
        console.print(Markdown("\n".join(block)))
    console.width = width


def _least_width(table_lines: Sequence[str]) -> int:
    """Return the width in which rich cuts no word of a Markdown table: it narrows the widest columns to one width."""
    rows = [[cell.strip() for cell in _BETWEEN_CELLS.split(line)[1:-1]] for line in table_lines]
    longest_word = max(cell_len(word) for row in rows for cell in row for word in cell.split())
    return sum(min(longest_word, max(map(cell_len, column))) + _PADDING for column in zip(*rows, strict=True)) + _PADDING


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
