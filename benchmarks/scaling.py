"""How the cost per adapter and per answer, and the memory held, grow with the number of adapters and of personas."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import memory_bytes
from benchmarks.measure import clock
from benchmarks.subjects import STUDY_STEPS, Subject, questions, training_jobs, write_adapters
from benchmarks.training import flops_of
from clusterlora.evaluation.inference_backends import inference_backend
from clusterlora.models.stacked import read_weights
from clusterlora.ports.run_log import SilentLog
from clusterlora.training import engine
from clusterlora.training.job import TrainingJob


@dataclass(frozen=True, slots=True)
class Point:
    """One size. Rates are of study-long adapters (45 steps); memory is what the run added and had at its fullest."""

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
) -> list[Point]:
    """Return the training rate with K adapters at once, every one of them n_dialogues / 2 steps long."""
    jobs = training_jobs(subject.ours, max(sizes), n_dialogues=n_dialogues, epochs=1, scratch=scratch)
    _train(subject, jobs[:1])
    return [_training_point("adapters trained together", subject, jobs[:k], peak_flops_per_second) for k in sizes]


def personas(subject: Subject, sizes: Sequence[int], *, peak_flops_per_second: float, scratch: Path) -> list[Point]:
    """Return the training rate and the memory of whole populations, one adapter of two steps per persona."""
    jobs = training_jobs(subject.ours, max(sizes), n_dialogues=4, epochs=1, scratch=scratch)
    _train(subject, jobs[:1])
    return [_training_point("personas", subject, jobs[:n], peak_flops_per_second) for n in sizes]


def adapters_in_one_batch(subject: Subject, sizes: Sequence[int], *, max_new_tokens: int, scratch: Path) -> list[Point]:
    """Return the answering rate of the same number of questions spread over ever more adapters."""
    n_items = max(sizes)
    folders = write_adapters(subject.ours, n_items, scratch)
    asked = questions(subject.ours, n_items, per_adapter=1)
    points = []
    for k in sizes:
        held = memory_bytes(subject.device)
        backend = inference_backend(subject.ours, [read_weights(folder) for folder in folders[:k]])
        shared = [replace(question, slot=1 + number % k, reference=()) for number, question in enumerate(asked)]
        start = clock(subject.device)
        found = list(backend.reply(shared, max_new_tokens=max_new_tokens, batch_size=32))
        seconds = clock(subject.device) - start
        added = (memory_bytes(subject.device) - held) / 2**20
        backend.close()
        points.append(Point(f"adapters answering {n_items} questions", k, len(found) / seconds, "answers/s", seconds, added, None))
    return points


def _training_point(what: str, subject: Subject, jobs: Sequence[TrainingJob], peak_flops_per_second: float) -> Point:
    held = memory_bytes(subject.device)
    start = clock(subject.device)
    fullest = _train(subject, jobs)
    seconds = clock(subject.device) - start
    rate = len(jobs) / seconds * jobs[0].total_steps / STUDY_STEPS
    mfu = len(jobs) * flops_of(subject, jobs) / seconds / peak_flops_per_second
    return Point(what, len(jobs), rate * 3600, "adapters/h", seconds, (fullest - held) / 2**20, mfu)


def _train(subject: Subject, jobs: Sequence[TrainingJob]) -> int:
    """Train the jobs, throwing finished adapters away as a store takes them away; return the most memory held after any."""
    fullest = 0
    for result in engine.train(subject.ours, jobs, micro_batch=jobs[0].spec.recipe.batch_size, run_log=SilentLog()):
        fullest = max(fullest, memory_bytes(subject.device))
        shutil.rmtree(result.job.scratch)
    return fullest
