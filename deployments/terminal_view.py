"""A running study in the terminal: a live table, or lines of what changed if stderr is no terminal.

Both go to stderr; stdout is for results.
"""

import time
from types import TracebackType
from typing import Self
from uuid import UUID

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deployments.prefect_client import RunSnapshot, StudySnapshot

LINE_EVERY_SECONDS = 20.0


def format_duration(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlainView:
    """Prints a line when a run changes its state, and progress of each running run every LINE_EVERY_SECONDS."""

    def __init__(self) -> None:
        self._states: dict[UUID, str] = {}
        self._printed_at: dict[UUID, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def print_line(self, line: str) -> None:
        """Print a message."""
        click.echo(f"         {line}", err=True)

    def show(self, study: StudySnapshot) -> None:
        """Print what changed since the last snapshot."""
        for run in (study.parent, *study.runs):
            if self._states.get(run.id) != run.state:
                self._states[run.id] = run.state
                self._printed_at[run.id] = time.monotonic()
                click.echo(f"{format_duration(study.parent.seconds):>7}  {run.name}: {_describe(run)}", err=True)
            elif run.running and run.progress and time.monotonic() - self._printed_at[run.id] >= LINE_EVERY_SECONDS:
                self._printed_at[run.id] = time.monotonic()
                click.echo(f"{format_duration(study.parent.seconds):>7}  {run.name}: {run.progress}", err=True)


class LiveView:
    """Redraws unfinished runs with their progress bars; a finished run becomes a line above the table."""

    def __init__(self) -> None:
        self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
        self._ended: set[UUID] = set()

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.__exit__(kind, error, trace)

    def print_line(self, line: str) -> None:
        """Print a message above the table."""
        self._live.console.print(Text(f"         {line}"))

    def show(self, study: StudySnapshot) -> None:
        """Redraw the table."""
        for run in study.runs:
            if not run.open and run.id not in self._ended:
                self._ended.add(run.id)
                self._live.console.print(Text(f"{format_duration(study.parent.seconds):>7}  {run.name}: {_describe(run)}"))
        n_ended = sum(not run.open for run in study.runs)
        counts = f"{n_ended} of {len(study.runs)} runs started so far have ended"
        title = Text(f"{study.parent.name}  {format_duration(study.parent.seconds)}  {counts}", "bold")
        self._live.update(Group(title, _progress_table([run for run in (study.parent, *study.runs) if run.open])))


def _progress_table(runs: list[RunSnapshot]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for run in runs:
        if run.running and run.percent is not None:
            grid.add_row(Text(run.name), ProgressBar(total=100, completed=run.percent, width=24), Text(run.progress, "dim"))
        else:
            grid.add_row(Text(run.name), Text(run.state.lower()), Text(""))
    return grid


def _describe(run: RunSnapshot) -> str:
    if run.open:
        return run.state.lower()
    message = f": {run.message}" if run.message and run.message != "All states completed." else ""
    return f"{run.state} after {format_duration(run.seconds)}{message}"
