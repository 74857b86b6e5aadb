"""A RunLog for people: a bar with an estimate of what is left in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_SECONDS = 10.0


def say(line: str) -> None:
    """Say one line on stderr; stdout is kept for results."""
    click.echo(line, err=True)


class ConsoleLog:
    """Draws progress on stderr; curves belong to the tracker and are not shown."""

    def __init__(self, progress: "Progress | None") -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._phase, self._unit, self._total, self._done = "", "", 0, 0
        self._facts: dict[str, float] = {}
        self._began = self._said = time.monotonic()

    def phase(self, name: str, *, total: int, unit: str) -> None:
        """Begin a bar of `total` units."""
        self._phase, self._unit, self._total, self._done = name, unit, total, 0
        self._facts = {}
        self._began = self._said = time.monotonic()
        if self._progress is not None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(name, total=total, unit=unit, facts="")
        else:
            self.note(f"{name}: {total} {unit}")

    def advance(self, units: int = 1, **facts: float) -> None:
        """Move the bar; outside a terminal say a line every few seconds and at the end."""
        self._done += units
        self._facts |= facts
        shown = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in self._facts.items())
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=units, facts=shown)
            return
        moment = time.monotonic()
        if self._done >= self._total or moment - self._said >= LINE_EVERY_SECONDS:
            self._said = moment
            self.note(f"{self._phase}: {self._done}/{self._total} {self._unit}  {shown}  {self._left()}")

    def metric(self, name: str, value: float, *, step: int) -> None:
        """Leave curves to the tracker."""

    def note(self, message: str) -> None:
        """Say one line."""
        if self._progress is not None:
            self._progress.console.print(message, markup=False, highlight=False)
        else:
            say(message)

    def _left(self) -> str:
        if not self._done or self._done >= self._total:
            return f"in {time.monotonic() - self._began:.0f} s"
        seconds = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        return f"about {seconds:.0f} s left"


@contextmanager
def console_log() -> Generator[ConsoleLog]:
    """Yield a RunLog for the length of a command."""
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
        TextColumn("{task.fields[facts]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield ConsoleLog(progress)
