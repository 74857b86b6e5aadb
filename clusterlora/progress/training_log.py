"""A run log that also writes the file people follow with `tail -f`."""

from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from clusterlora.durable import make_folder
from clusterlora.ports.run_log import RunLog

_LINES = 50
"""About so many progress lines in a file, however long the training."""


class TrainingLog(RunLog):
    """Passes everything on to another run log and appends a line now and then to a file."""

    def __init__(self, inner: RunLog, file: Path, *, total_steps: int, micro_batch: int | None = None) -> None:
        self._inner = inner
        self._path = file
        self._every = max(1, total_steps // _LINES)
        self._total = total_steps
        self._step = 0
        self._micro_batch = micro_batch

    def __enter__(self) -> Self:
        make_folder(self._path.parent)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._write("finished" if error is None else f"stopped: {error}")
        self._file.close()

    def phase(self, name: str, *, total: int, unit: str) -> None:
        self._write(f"{name}: {total} {unit}" + (f", micro-batch {self._micro_batch}" if self._micro_batch else ""))
        self._inner.phase(name, total=total, unit=unit)

    def advance(self, units: int = 1, **values: float) -> None:
        self._step += units
        if self._step % self._every == 0:
            self._write(f"step {self._step}/{self._total} " + " ".join(f"{name}={value:.4f}" for name, value in values.items()))
        self._inner.advance(units, **values)

    def metric(self, name: str, value: float, *, step: int) -> None:
        self._inner.metric(name, value, step=step)

    def note(self, message: str) -> None:
        self._write(message)
        self._inner.note(message)

    def _write(self, line: str) -> None:
        self._file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n")
