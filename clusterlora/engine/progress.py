"""Where the engine reports its progress."""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from clusterlora.chat.encoder import TokenSequence
    from clusterlora.engine.job import TrainingJob, TrainingResult

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
    """How far a training is: optimiser steps of all adapters together, finished adapters, the last loss in nats per response token.

    Steps and adapters of an earlier call that this one goes on from are counted.
    """

    step: int
    n_steps: int
    n_finished: int
    n_adapters: int
    loss: float
    """Not a number before the first step of this call."""
    seconds_left: float
    """Estimated from the steps of this call; infinite before the first."""


class StepReport:
    """What the training loop reports: every step of every adapter once, however often it was interrupted."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._n_steps = Counter[str]()
        self._n_finished = self._n_tokens = 0
        self._started = time.monotonic()

    def began(self, job: "TrainingJob", n_steps: int) -> None:
        """Count the steps that a resumed job took before; after memory ran out, do not count those it takes again."""
        if n_more := n_steps - self._n_steps[job.name]:
            self._progress.advance(n_more)
            self._n_steps[job.name] = n_steps

    def stepped(self, job: "TrainingJob", batch: "Sequence[TokenSequence]", loss: float) -> None:
        """Report an optimiser step on these dialogues."""
        self._n_tokens += sum(len(sequence.ids) for sequence in batch)
        self._n_steps[job.name] += 1
        tokens_per_second = self._n_tokens / (time.monotonic() - self._started)
        self._progress.advance(1, loss=loss, adapters_done=self._n_finished, tokens_per_second=tokens_per_second)

    def finished(self, result: "TrainingResult") -> None:
        """Count a finished adapter, and the steps that stopping early has saved."""
        self._n_finished += 1
        if n_skipped := result.job.total_steps - len(result.losses):
            self._progress.advance(n_skipped, adapters_done=self._n_finished)


class CallbackProgress:
    """Calls a function with a `TrainingProgress` after every optimiser step of an adapter and after every finished adapter."""

    def __init__(self, callback: Callable[[TrainingProgress], None], *, n_steps: int, n_adapters: int) -> None:
        self._callback = callback
        self._n_steps, self._n_adapters = n_steps, n_adapters
        self._step = self._n_trained = self._n_finished = 0
        self._loss = float("nan")
        self._started = time.monotonic()

    def advance(self, units: int = 1, **values: float) -> None:
        """See `Progress`; steps without a loss were not computed in this call: an earlier one did, or they are left out."""
        self._step = min(self._n_steps, self._step + units)
        if "loss" in values:
            self._n_trained += units
            self._loss = values["loss"]
        self._report()

    def finish_adapter(self) -> None:
        """Count one more finished adapter."""
        self._n_finished += 1
        self._report()

    def _report(self) -> None:
        n_left, seconds = self._n_steps - self._step, time.monotonic() - self._started
        left = 0.0 if n_left == 0 else seconds / self._n_trained * n_left if self._n_trained else float("inf")
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
        line = f"{progress.n_finished}/{progress.n_adapters} adapters  step {progress.step}/{progress.n_steps}"
        if math.isfinite(progress.loss):
            line += f"  loss {progress.loss:.3f}  {progress.seconds_left:.0f} s left"
        sys.stderr.write(f"\r{line}{'' if not is_last else chr(10)}" if self._overwrites else f"{line}\n")
        sys.stderr.flush()
