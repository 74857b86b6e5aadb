"""What is timed: trainings of our engine with the moments of their steps, rates, and the card's own."""

import gc
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import torch

from benchmarks.flops import Shape
from benchmarks.measure import clock
from clusterlora.engine import training_loop
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import TrainingJob
from clusterlora.ports.run_log import SilentLog

STUDY_STEPS = 45
"""Optimiser steps of one personal adapter in the mission's study: 30 dialogues, 3 epochs, batches of 2."""


@dataclass(slots=True)
class StepTimes(SilentLog):
    """Records when every adapter's every step ended; nothing waits for the device because of it."""

    ends: list[float] = field(default_factory=list[float])

    def advance(self, units: int = 1, **facts: float) -> None:  # noqa: ARG002
        """See `RunLog`."""
        self.ends += [time.perf_counter()] * units


@dataclass(frozen=True, slots=True)
class Training:
    """One call of the engine: its seconds, when steps ended (seconds after its start), and the mean loss."""

    seconds: float
    ends: tuple[float, ...]
    mean_loss: float
    n_jobs: int

    @property
    def pass_seconds(self) -> float:
        """Seconds in passes; the first one, whose start is not reported, is taken to be as long as the others."""
        n_later = len(self.ends) - self.n_jobs
        if n_later <= 0:
            return self.seconds
        return min(self.seconds, (self.ends[-1] - self.ends[self.n_jobs - 1]) * len(self.ends) / n_later)


def train(base: BaseModel, jobs: Sequence[TrainingJob], log: StepTimes | None = None) -> Training:
    """Train the jobs together, and delete each folder once it is written: thousands would fill the disk."""
    device = base.model.device
    log = log or StepTimes()
    losses: list[float] = []
    begun = clock(device)
    for result in training_loop.train(base, jobs, micro_batch=jobs[0].recipe.batch_size, run_log=log, halve_micro_batch=True):
        losses.append(fmean(result.losses))
        shutil.rmtree(result.job.scratch, ignore_errors=True)
    seconds = clock(device) - begun
    gc.collect()
    return Training(seconds, tuple(end - begun for end in log.ends), fmean(losses), len(jobs))


def flops(shape: Shape, jobs: Sequence[TrainingJob]) -> float:
    """Return the necessary operations of all steps of the jobs."""
    return sum(job.recipe.epochs * sum(map(shape.training, job.sequences)) for job in jobs)


def matrix_rate(device: torch.device, n: int) -> float:
    """Return the operations per second of products of two random n x n matrices in bfloat16: the median of five times four products."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.float32).to(torch.bfloat16) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    seconds = []
    for _ in range(5):
        begun = clock(device)
        for _ in range(4):
            torch.mm(a, b)
        seconds.append((clock(device) - begun) / 4)
    return 2 * n**3 / median(seconds)


def copy_rate(device: torch.device, n_bytes: int) -> float:
    """Return the bytes per second, read and written, of a copy on the device: the median of five times four copies."""
    source = torch.ones(n_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(5):
        begun = clock(device)
        for _ in range(4):
            target.copy_(source)
        seconds.append((clock(device) - begun) / 4)
    return 2 * n_bytes / median(seconds)


def peak_gib(device: torch.device) -> float | None:
    """Return the most memory of the card that was allocated since it was last asked."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak
