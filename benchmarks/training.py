"""Training: finished adapters per hour, the stacked engine against Trainer + PEFT, TRL and our own reference engine."""

import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from types import ModuleType

import torch

from benchmarks.measure import Contender, Sample, Speedup, clock, speedup, take_turns
from benchmarks.subjects import STUDY_STEPS, Subject, training_jobs
from benchmarks.trainers import Timing, train_with_trainer, train_with_trl, trl_is_installed
from clusterlora.engine import reference, training_loop
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import TrainingJob
from clusterlora.ports.run_log import SilentLog
from clusterlora.settings import Dtype

OURS = "ours"
REFERENCE = "PEFT reference engine"
TRAINER = "transformers Trainer + PEFT"
TRL = "TRL SFTTrainer"

PeerTrainer = Callable[[BaseModel, TrainingJob], Timing]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How much is measured. Times are extrapolated to a study's number of steps at the measured rate."""

    adapters: int
    """Adapters that clusterlora trains together."""
    peer_adapters: int
    """Adapters that each peer trains, one after another."""
    dialogues: int = 30
    epochs: int = 3
    peers: tuple[str, ...] = (TRAINER, TRL, REFERENCE)


def compare_training(
    subject: Subject, plan: TrainingPlan, *, peak_flops_per_second: float, budget_seconds: float, at_least: int, scratch: Path
) -> list[Speedup]:
    """Return a speedup per peer. The unit is an adapter of the mission's 45 steps, saved as a PEFT folder."""
    jobs = training_jobs(subject.ours, plan.adapters, n_dialogues=plan.dialogues, epochs=plan.epochs, scratch=scratch)
    shared = _middle(jobs, plan.peer_adapters)
    ours = _StackedEngine(subject, jobs)
    contenders = [Contender(OURS, ours.warm_up, ours.run)]
    for name in plan.peers:
        if name != TRL or trl_is_installed():
            peer = _SequentialPeer(subject, shared, _modes(name, subject.dtype))
            contenders.append(Contender(name, peer.warm_up, peer.run))
    samples = take_turns(contenders, budget_seconds=budget_seconds, at_least=at_least, at_most=7)
    n_sequences = sum(len(job.sequences) for job in jobs)
    settings = {
        "model": subject.name,
        "dtype": subject.dtype,
        "device": str(subject.device),
        "adapters_ours": len(jobs),
        "adapters_per_peer": len(shared),
        "steps_measured": jobs[0].total_steps,
        "steps_per_adapter": STUDY_STEPS,
        "batch_size": jobs[0].recipe.batch_size,
        "rank": jobs[0].recipe.rank,
        "mean_tokens_per_dialogue": sum(len(s.ids) for job in jobs for s in job.sequences) / n_sequences,
        "mean_response_tokens_per_dialogue": sum(s.n_response_tokens for job in jobs for s in job.sequences) / n_sequences,
    }
    return [
        speedup(
            f"training {subject.name} {subject.dtype}",
            contender.name,
            samples[OURS],
            samples[contender.name],
            unit="adapters/h",
            units_per_second=3600,
            peak_flops_per_second=peak_flops_per_second,
            settings=settings,
        )
        for contender in contenders[1:]
    ]


def flops_of(subject: Subject, jobs: Sequence[TrainingJob]) -> float:
    """Return the mean number of necessary operations per adapter over its measured steps."""
    return fmean(job.recipe.epochs * sum(map(subject.shape.training, job.sequences)) for job in jobs)


def _middle(jobs: Sequence[TrainingJob], n: int) -> list[TrainingJob]:
    """Return the n jobs around the median token count, so that a few represent all."""
    by_length = sorted(jobs, key=lambda job: sum(len(s.ids) for s in job.sequences))
    start = (len(jobs) - n) // 2
    return by_length[start : start + n]


def _one_step(job: TrainingJob) -> TrainingJob:
    """Return the job cut to one optimiser step."""
    return replace(job, recipe=replace(job.recipe, epochs=1), sequences=job.sequences[: job.recipe.batch_size])


def _clean(jobs: Sequence[TrainingJob]) -> None:
    """Delete the files and reference cycles of a run, so that it does not affect the next one."""
    for job in jobs:
        shutil.rmtree(job.scratch, ignore_errors=True)
    gc.collect()


@dataclass(frozen=True, slots=True)
class _StackedEngine:
    """clusterlora's engine: trains all jobs together."""

    subject: Subject
    jobs: Sequence[TrainingJob]

    def warm_up(self) -> None:
        self._train([_one_step(job) for job in self.jobs])

    def run(self) -> Sample:
        run = self._train(self.jobs)
        scale = STUDY_STEPS / self.jobs[0].total_steps
        seconds = (run.fixed_seconds + run.step_seconds * scale) / len(self.jobs)
        facts = {"mean_loss": run.mean_loss, "fixed_seconds_per_adapter": run.fixed_seconds / len(self.jobs)}
        return Sample(seconds, flops_of(self.subject, self.jobs) * scale, facts)

    def _train(self, jobs: Sequence[TrainingJob]) -> Timing:
        run = _run(training_loop, self.subject.ours, jobs)
        _clean(jobs)
        return run


@dataclass(slots=True)
class _SequentialPeer:
    """A peer: trains one job after another in the first of its modes; warm-up sorts them by speed."""

    subject: Subject
    jobs: Sequence[TrainingJob]
    modes: Sequence[PeerTrainer]

    def warm_up(self) -> None:
        job = _one_step(self.jobs[0])
        for mode in self.modes:
            self._train(mode, job)
        if len(self.modes) > 1:
            self.modes = sorted(self.modes, key=lambda mode: min(self._train(mode, job).step_seconds for _ in range(2)))

    def run(self) -> Sample:
        runs = [self._train(self.modes[0], job) for job in self.jobs]
        scale = STUDY_STEPS / self.jobs[0].total_steps
        facts = {"mean_loss": fmean(run.mean_loss for run in runs), "fixed_seconds_per_adapter": fmean(run.fixed_seconds for run in runs)}
        if isinstance(self.modes[0], partial):
            facts |= self.modes[0].keywords
        return Sample(fmean(run.fixed_seconds + run.step_seconds * scale for run in runs), flops_of(self.subject, self.jobs) * scale, facts)

    def _train(self, mode: PeerTrainer, job: TrainingJob) -> Timing:
        run = mode(self.subject.theirs, job)
        _clean([job])
        return run


def _modes(name: str, dtype: Dtype) -> list[PeerTrainer]:
    """Return the ways to run a peer in a dtype: a bfloat16 base with or without autocast of the float32 adapters."""
    if name == REFERENCE:
        return [_train_with_reference]
    trainer = {TRAINER: train_with_trainer, TRL: train_with_trl}[name]
    return [partial(trainer, autocast=autocast) for autocast in ((False, True) if dtype == "bfloat16" else (False,))]


@dataclass(slots=True)
class _StepLog(SilentLog):
    """Records the end time of each step."""

    device: torch.device
    ends: list[float] = field(default_factory=list[float])

    def advance(self, units: int = 1, **facts: float) -> None:  # noqa: ARG002
        self.ends.append(clock(self.device))


def _run(trainer: ModuleType, base: BaseModel, jobs: Sequence[TrainingJob]) -> Timing:
    """Train jobs of equal length with one of our engines; return step time and fixed time separately.

    The start of the first steps is not reported, so the jobs' first steps are assumed to take as long as their later ones.
    """
    device = base.model.device
    log = _StepLog(device)
    start = clock(device)
    results = list(trainer.train(base, jobs, micro_batch=jobs[0].recipe.batch_size, run_log=log))
    total = clock(device) - start
    n_later = len(log.ends) - len(jobs)
    step_seconds = min(total, (log.ends[-1] - log.ends[len(jobs) - 1]) * len(log.ends) / n_later) if n_later else total
    return Timing(step_seconds, total - step_seconds, fmean(loss for result in results for loss in result.losses))


def _train_with_reference(base: BaseModel, job: TrainingJob) -> Timing:
    return _run(reference, base, [job])
