"""A RunLog for people: a bar with an estimate of what is left in a terminal, plain lines elsewhere, and a copy in a file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_SECONDS = 10.0


class ConsoleLog:
    """Draws progress on stderr and, when given a file, appends every line to it."""

    def __init__(self, progress: "Progress | None", log_file: Path | None) -> None:
        self._progress = progress
        self._log_file = log_file
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
        self._say(f"{name}: {total} {unit}", shown=self._progress is None)

    def advance(self, units: int = 1, **facts: float) -> None:
        """Move the bar; outside a terminal say a line every few seconds and at the end."""
        self._done += units
        self._facts |= facts
        shown = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in self._facts.items())
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=units, facts=shown)
        moment = time.monotonic()
        if self._done >= self._total or moment - self._said >= LINE_EVERY_SECONDS:
            self._said = moment
            self._say(f"{self._phase}: {self._done}/{self._total} {self._unit}  {shown}  {self._left()}".rstrip(), shown=self._progress is None)

    def metric(self, name: str, value: float, *, step: int) -> None:
        """Keep a curve's point in the file."""
        self._to_file(f"step {step}: {name} {value:.5g}")

    def note(self, message: str) -> None:
        """Say one line."""
        self._say(message, shown=True)

    def _left(self) -> str:
        if not self._done or self._done >= self._total:
            return f"in {time.monotonic() - self._began:.0f} s"
        seconds = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        return f"about {seconds:.0f} s left"

    def _say(self, line: str, *, shown: bool) -> None:
        self._to_file(line)
        if not shown:
            return
        if self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False)
        else:
            click.echo(line, err=True)

    def _to_file(self, line: str) -> None:
        if self._log_file is None:
            return
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {line}\n")


@contextmanager
def console_log(log_file: Path | None = None) -> Iterator[ConsoleLog]:
    """Yield a RunLog for the length of a command."""
    if not sys.stderr.isatty():
        yield ConsoleLog(None, log_file)
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
        yield ConsoleLog(progress, log_file)
