"""How a running study is shown: a table that redraws itself in a terminal, lines of what changed anywhere else.

Both go to stderr: stdout is kept for results.
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

from deployments.observe import Run, Snapshot

LINE_EVERY_SECONDS = 20.0


def clock(seconds: float) -> str:
    """Return a length of time as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlainView:
    """Says one line when a run changes its state, and one per running run every so often."""

    def __init__(self) -> None:
        self._states: dict[UUID, str] = {}
        self._said: dict[UUID, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def say(self, line: str) -> None:
        """Say one line of another kind."""
        click.echo(f"         {line}", err=True)

    def show(self, picture: Snapshot) -> None:
        """Say what is different from the last picture."""
        for run in (picture.parent, *picture.runs):
            if self._states.get(run.id) != run.state:
                self._states[run.id] = run.state
                self._said[run.id] = time.monotonic()
                click.echo(f"{clock(picture.parent.seconds):>7}  {run.name}: {_ending(run)}", err=True)
            elif run.running and run.progress and time.monotonic() - self._said[run.id] >= LINE_EVERY_SECONDS:
                self._said[run.id] = time.monotonic()
                click.echo(f"{clock(picture.parent.seconds):>7}  {run.name}: {run.progress}", err=True)


class LiveView:
    """Redraws all open runs with their bars; runs that ended scroll away above as lines."""

    def __init__(self) -> None:
        self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
        self._ended: set[UUID] = set()

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.__exit__(kind, error, trace)

    def say(self, line: str) -> None:
        """Say one line of another kind, above the table."""
        self._live.console.print(Text(f"         {line}"))

    def show(self, picture: Snapshot) -> None:
        """Draw the picture."""
        for run in picture.runs:
            if not run.open and run.id not in self._ended:
                self._ended.add(run.id)
                self._live.console.print(Text(f"{clock(picture.parent.seconds):>7}  {run.name}: {_ending(run)}"))
        n_ended = sum(not run.open for run in picture.runs)
        counts = f"{n_ended} of {len(picture.runs)} runs so far are done"
        head = Text(f"{picture.parent.name}  {clock(picture.parent.seconds)}  {counts}", "bold")
        self._live.update(Group(head, _bars([run for run in (picture.parent, *picture.runs) if run.open])))


def _bars(runs: list[Run]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for run in runs:
        if run.running and run.percent is not None:
            grid.add_row(Text(run.name), ProgressBar(total=100, completed=run.percent, width=24), Text(run.progress, "dim"))
        else:
            grid.add_row(Text(run.name), Text(run.state.lower()), Text(""))
    return grid


def _ending(run: Run) -> str:
    if run.open:
        return run.state.lower()
    message = f": {run.message}" if run.message and run.message != "All states completed." else ""
    return f"{run.state} after {clock(run.seconds)}{message}"
