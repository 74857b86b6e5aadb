"""RunLog of the command line: a progress bar with remaining time in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from clusterlora.progress.pace import Pace

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_SECONDS = 10.0


def echo_stderr(line: str) -> None:
    """Print a line on stderr; stdout is for results."""
    click.echo(line, err=True)


class ConsoleLog:
    """Shows progress on stderr. Metric curves go to the tracker and are not shown."""

    def __init__(self, progress: "Progress | None") -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._phase, self._unit, self._total, self._done = "", "", 0, 0
        self._values: dict[str, float] = {}
        self._pace = Pace()
        self._started_at = self._printed_at = time.monotonic()

    def phase(self, name: str, *, total: int, unit: str) -> None:
        """Start a progress bar of `total` units."""
        self._phase, self._unit, self._total, self._done = name, unit, total, 0
        self._values = {}
        self._pace = Pace()
        self._started_at = self._printed_at = time.monotonic()
        if self._progress is not None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(name, total=total, unit=unit, values="")
        else:
            self.note(f"{name}: {total} {unit}")

    def advance(self, units: int = 1, **values: float) -> None:
        """Advance the bar; outside a terminal print a line every LINE_EVERY_SECONDS and at the end."""
        self._done += units
        self._values |= values
        numbers = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in self._values.items())
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=units, values=numbers)
            return
        now = time.monotonic()
        left = self._pace.seconds_left(self._done, self._total, now)
        if self._done >= self._total or now - self._printed_at >= LINE_EVERY_SECONDS:
            self._printed_at = now
            self.note(f"{self._phase}: {self._done}/{self._total} {self._unit}  {numbers}  {self._remaining(left, now)}")

    def metric(self, name: str, value: float, *, step: int) -> None:
        """Ignore the value: curves go to the tracker."""

    def note(self, message: str) -> None:
        """Print a line."""
        if self._progress is not None:
            self._progress.console.print(message, markup=False, highlight=False)
        else:
            echo_stderr(message)

    def _remaining(self, left: float | None, now: float) -> str:
        if self._done >= self._total:
            return f"in {now - self._started_at:.0f} s"
        return "" if left is None else f"about {left:.0f} s left"


@contextmanager
def console_log() -> Generator[ConsoleLog]:
    """Yield the RunLog of one command."""
    if not sys.stderr.isatty():
        yield ConsoleLog(None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield ConsoleLog(progress)
