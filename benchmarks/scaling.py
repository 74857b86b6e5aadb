"""Measures how training rate, answer rate and memory scale with the number of adapters and of personas."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import memory_bytes
from benchmarks.measure import clock
from benchmarks.subjects import STUDY_STEPS, Subject, questions, training_jobs, write_adapters
from benchmarks.training import flops_of
from clusterlora.engine import training_loop
from clusterlora.engine.inference_backends import inference_backend
from clusterlora.engine.job import TrainingJob
from clusterlora.engine.kinds import read_weights
from clusterlora.ports.run_log import SilentLog


@dataclass(frozen=True, slots=True)
class ScalingPoint:
    """The measurement at one size. Rates are per study-long adapter (45 steps); `added_mib` is the peak memory that the run added."""

    what: str
    n: int
    rate: float
    unit: str
    seconds: float
    added_mib: float
    mfu: float | None

    def as_json(self) -> dict[str, Any]:
        return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in asdict(self).items()}


def adapters_in_one_pass(
    subject: Subject, sizes: Sequence[int], *, n_dialogues: int, peak_flops_per_second: float, scratch: Path
) -> list[ScalingPoint]:
    """Return the training rate with K adapters together, each trained for n_dialogues / 2 steps."""
    jobs = training_jobs(subject.ours, max(sizes), n_dialogues=n_dialogues, epochs=1, scratch=scratch)
    _train(subject, jobs[:1])
    return [_training_point("adapters trained together", subject, jobs[:k], peak_flops_per_second) for k in sizes]


def personas(subject: Subject, sizes: Sequence[int], *, peak_flops_per_second: float, scratch: Path) -> list[ScalingPoint]:
    """Return training rate and memory for whole populations: one adapter of two steps per persona."""
    jobs = training_jobs(subject.ours, max(sizes), n_dialogues=4, epochs=1, scratch=scratch)
    _train(subject, jobs[:1])
    return [_training_point("personas", subject, jobs[:n], peak_flops_per_second) for n in sizes]


def adapters_in_one_batch(subject: Subject, sizes: Sequence[int], *, max_new_tokens: int, scratch: Path) -> list[ScalingPoint]:
    """Return the answer rate for a fixed number of questions distributed over K adapters."""
    n_items = max(sizes)
    folders = write_adapters(subject.ours, n_items, scratch)
    all_questions = questions(subject.ours, n_items, per_adapter=1)
    points = []
    for k in sizes:
        memory_before = memory_bytes(subject.device)
        backend = inference_backend(subject.ours, [read_weights(folder) for folder in folders[:k]])
        distributed = [replace(question, slot=1 + number % k, reference=()) for number, question in enumerate(all_questions)]
        start = clock(subject.device)
        replies = list(backend.reply(distributed, max_new_tokens=max_new_tokens, batch_size=32))
        seconds = clock(subject.device) - start
        added = (memory_bytes(subject.device) - memory_before) / 2**20
        backend.close()
        points.append(ScalingPoint(f"adapters answering {n_items} questions", k, len(replies) / seconds, "answers/s", seconds, added, None))
    return points


def _training_point(what: str, subject: Subject, jobs: Sequence[TrainingJob], peak_flops_per_second: float) -> ScalingPoint:
    memory_before = memory_bytes(subject.device)
    start = clock(subject.device)
    peak = _train(subject, jobs)
    seconds = clock(subject.device) - start
    rate = len(jobs) / seconds * jobs[0].total_steps / STUDY_STEPS
    mfu = len(jobs) * flops_of(subject, jobs) / seconds / peak_flops_per_second
    return ScalingPoint(what, len(jobs), rate * 3600, "adapters/h", seconds, (peak - memory_before) / 2**20, mfu)


def _train(subject: Subject, jobs: Sequence[TrainingJob]) -> int:
    """Train the jobs and return the peak memory in bytes after any of them; finished adapters are deleted, as if moved to a store."""
    peak = 0
    for result in training_loop.train(subject.ours, jobs, micro_batch=jobs[0].recipe.batch_size, run_log=SilentLog()):
        peak = max(peak, memory_bytes(subject.device))
        shutil.rmtree(result.job.scratch)
    return peak
