"""Where the engine reports its progress."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

_SECONDS_PER_LINE = 10.0
"""Between two lines where a line cannot be overwritten."""


@runtime_checkable
class Progress(Protocol):
    """What a caller passes to be told how far the work is; a `ports.run_log.RunLog` is one."""

    def advance(self, units: int = 1, **values: float) -> None:
        """Report that `units` more are done; the values describe them (loss, tokens_per_second)."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far a training is: optimiser steps of all adapters together, finished adapters, the last loss in nats per response token."""

    step: int
    n_steps: int
    n_finished: int
    n_adapters: int
    loss: float
    seconds_left: float
    """Estimated from the steps so far; infinite before the first."""


class CallbackProgress:
    """Calls a function with a `TrainingProgress` after every optimiser step of an adapter and after every finished adapter."""

    def __init__(self, callback: Callable[[TrainingProgress], None], *, n_steps: int, n_adapters: int) -> None:
        self._callback = callback
        self._n_steps, self._n_adapters = n_steps, n_adapters
        self._step = self._n_finished = 0
        self._loss = float("nan")
        self._started = time.monotonic()

    def advance(self, units: int = 1, **values: float) -> None:
        """See `Progress`."""
        self._step = min(self._n_steps, self._step + units)
        self._loss = values.get("loss", self._loss)
        self._report()

    def finish_adapter(self) -> None:
        """Count one more finished adapter."""
        self._n_finished += 1
        self._report()

    def _report(self) -> None:
        seconds = time.monotonic() - self._started
        left = seconds / self._step * (self._n_steps - self._step) if self._step else float("inf")
        self._callback(TrainingProgress(self._step, self._n_steps, self._n_finished, self._n_adapters, self._loss, left))


class ProgressLine:
    """A line on stderr: overwritten in a terminal and in a notebook, else written now and then."""

    def __init__(self) -> None:
        self._written = 0.0
        self._overwrites = sys.stderr.isatty() or "ipykernel" in sys.modules

    def __call__(self, progress: TrainingProgress) -> None:
        """Write the line."""
        is_last = progress.n_finished == progress.n_adapters
        now = time.monotonic()
        if not is_last and now - self._written < (0.2 if self._overwrites else _SECONDS_PER_LINE):
            return
        self._written = now
        line = (
            f"{progress.n_finished}/{progress.n_adapters} adapters  step {progress.step}/{progress.n_steps}  "
            f"loss {progress.loss:.3f}  {progress.seconds_left:.0f} s left"
        )
        sys.stderr.write(f"\r{line}{'' if not is_last else chr(10)}" if self._overwrites else f"{line}\n")
        sys.stderr.flush()
