"""Compares with the peers, measures scaling, writes benchmarks.json and benchmarks.md: `python -m benchmarks.run --out docs`."""

import argparse
import logging
import re
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, report, scaling
from benchmarks.generation import GenerationPlan, compare_generation
from benchmarks.measure import Speedup
from benchmarks.scaling import ScalingPoint
from benchmarks.subjects import QWEN_SHAPE, Subject, load_subject
from benchmarks.trainers import trl_is_installed
from benchmarks.training import TRAINER, TRL, TrainingPlan, compare_training
from clusterlora.errors import ClusterLoraError
from clusterlora.models.base import multiplies_bfloat16
from clusterlora.settings import Dtype

log = logging.getLogger("benchmarks")

SMOLLM2 = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class Section:
    """The comparisons of one subject in one dtype. `share` is its share of the time: more time means more repetitions."""

    model: str
    dtype: Dtype
    plan: TrainingPlan | GenerationPlan
    share: float

    @property
    def name(self) -> str:
        subject = f"{self.model} {self.dtype}"
        return f"training {subject}" if isinstance(self.plan, TrainingPlan) else f"generation {subject}{self.plan.variant}"


# Few steps where one takes seconds; rates are extrapolated to the study's 45.
FULL = (
    Section("homelm", "float32", TrainingPlan(adapters=32, peer_adapters=3), 0.08),
    Section("homelm", "bfloat16", TrainingPlan(adapters=32, peer_adapters=3), 0.08),
    Section("homelm", "float32", GenerationPlan(adapters=16, max_new_tokens=64), 0.04),
    Section("homelm", "float32", GenerationPlan(adapters=16, items_per_adapter=8, max_new_tokens=64), 0.06),
    Section("homelm", "float32", GenerationPlan(adapters=16, items_per_adapter=8, described=True, max_new_tokens=64), 0.06),
    Section(SMOLLM2, "float32", TrainingPlan(adapters=12, peer_adapters=1, dialogues=6, epochs=1), 0.16),
    Section(SMOLLM2, "float32", GenerationPlan(adapters=16, max_new_tokens=24), 0.10),
    Section(SMOLLM2, "bfloat16", TrainingPlan(adapters=12, peer_adapters=1, dialogues=6, epochs=1), 0.14),
    Section(SMOLLM2, "bfloat16", GenerationPlan(adapters=16, max_new_tokens=24), 0.10),
    Section(QWEN_SHAPE, "float32", TrainingPlan(adapters=8, peer_adapters=1, dialogues=4, epochs=1, peers=(TRAINER, TRL)), 0.12),
    Section(QWEN_SHAPE, "float32", GenerationPlan(adapters=8, max_new_tokens=8), 0.06),
)
QUICK = (
    Section("homelm", "float32", TrainingPlan(adapters=16, peer_adapters=1, epochs=1), 0.5),
    Section("homelm", "float32", GenerationPlan(adapters=8), 0.2),
)
# As many adapters and items as fit on a GPU together; each peer trains one whole adapter.
CUDA = (
    Section(SMOLLM2, "bfloat16", TrainingPlan(adapters=256, peer_adapters=1, peers=(TRAINER, TRL)), 0.25),
    Section(SMOLLM2, "bfloat16", GenerationPlan(adapters=16, max_new_tokens=32), 0.15),
    Section("homelm", "float32", TrainingPlan(adapters=256, peer_adapters=1, peers=(TRAINER, TRL)), 0.1),
    Section(SMOLLM2, "bfloat16", GenerationPlan(adapters=16, items_per_adapter=16, max_new_tokens=32, batch_size=256), 0.15),
    Section(SMOLLM2, "float32", TrainingPlan(adapters=32, peer_adapters=1, epochs=1, peers=(TRAINER, TRL)), 0.15),
    Section(QWEN_SHAPE, "bfloat16", TrainingPlan(adapters=64, peer_adapters=1, epochs=1, peers=(TRAINER, TRL)), 0.1),
    Section(SMOLLM2, "float32", GenerationPlan(adapters=16, max_new_tokens=32), 0.1),
)


@dataclass(slots=True)
class _Bench:
    """A run of the benchmarks: its options, its clock and its results so far."""

    options: argparse.Namespace
    started: float = field(default_factory=time.monotonic)
    rows: list[Speedup] = field(default_factory=list[Speedup])
    points: list[ScalingPoint] = field(default_factory=list[ScalingPoint])
    skipped: list[str] = field(default_factory=list[str])
    peaks: dict[str, float] = field(default_factory=dict[str, float])
    _subjects: dict[tuple[str, Dtype], Subject] = field(default_factory=dict[tuple[str, Dtype], Subject])

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.started) / 60

    @property
    def device(self) -> torch.device:
        return torch.device(self.options.device)

    def subject(self, model: str, dtype: Dtype) -> Subject:
        """Return a subject; only the last one stays in memory."""
        if (model, dtype) not in self._subjects:
            self._subjects.clear()
            log.info("loading %s in %s", model, dtype)
            self._subjects[model, dtype] = load_subject(model, dtype=dtype, device=self.options.device)
        return self._subjects[model, dtype]

    def peak(self, dtype: Dtype) -> float:
        if dtype not in self.peaks:
            self.peaks[dtype] = machine.peak_flops_per_second(self.device, getattr(torch, dtype))
        return self.peaks[dtype]

    def is_selected(self, name: str) -> bool:
        """Return whether to measure a part; record it as skipped when the time is up."""
        if self.options.only and not re.search(self.options.only, name):
            return False
        if self.minutes > self.options.minutes:
            self.skipped.append(f"{name}: the {self.options.minutes:g} minutes were over; raise --minutes")
            return False
        log.info("%.1f min: %s", self.minutes, name)
        return True

    def compare(self, section: Section) -> None:
        if section.dtype == "bfloat16" and not multiplies_bfloat16(self.device.type):
            self.skipped.append(f"{section.name}: this machine has no bfloat16 instructions, so nobody would use it")
            return
        subject = self.subject(section.model, section.dtype)
        peak, seconds = self.peak(section.dtype), section.share * self.options.minutes * 60
        at_least = 2 if self.options.quick else 3
        with _scratch() as folder:
            if isinstance(section.plan, TrainingPlan):
                if TRL in section.plan.peers and not trl_is_installed():
                    self.skipped.append(f"{section.name} against {TRL}: trl is not installed; run `make bench`")
                speedups = compare_training(
                    subject, section.plan, peak_flops_per_second=peak, budget_seconds=seconds, at_least=at_least, scratch=folder
                )
            else:
                speedups = compare_generation(
                    subject, section.plan, peak_flops_per_second=peak, budget_seconds=seconds, at_least=at_least, scratch=folder
                )
        for row in speedups:
            log.info("  %.2fx (%.2f to %.2f) over %s", row.ratio_median, row.ratio_min, row.ratio_max, row.baseline)
        self.rows += speedups

    def results(self, machine_description: Mapping[str, Any], arguments: Sequence[str]) -> report.Results:
        return report.Results(
            command=shlex.join(["python", "-m", "benchmarks.run", *arguments]),
            minutes=self.minutes,
            machine=machine_description,
            versions=machine.versions(),
            peak_gflops_per_second={dtype: rate / 1e9 for dtype, rate in self.peaks.items()},
            rows=self.rows,
            scaling=self.points,
            skipped=self.skipped,
        )

    def scale(self) -> None:
        quick = self.options.quick
        sizes = (1, 4, 16) if quick else (1, 4, 16, 64, 200)
        if self.is_selected("scaling adapters"):
            with _scratch() as folder:
                self.points += scaling.adapters_in_one_pass(
                    self.subject("homelm", "float32"),
                    sizes,
                    n_dialogues=10 if quick else 30,
                    peak_flops_per_second=self.peak("float32"),
                    scratch=folder,
                )
        if self.is_selected("scaling answers"):
            with _scratch() as folder:
                self.points += scaling.adapters_in_one_batch(self.subject("homelm", "float32"), sizes, max_new_tokens=64, scratch=folder)
        if self.is_selected("scaling personas"):
            with _scratch() as folder:
                self.points += scaling.personas(
                    self.subject("homelm", "float32"),
                    (20,) if quick else (20, 200, 2000),
                    peak_flops_per_second=self.peak("float32"),
                    scratch=folder,
                )


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="clusterlora-bench-") as folder:
        yield Path(folder)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for benchmarks.json and benchmarks.md")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="threads of both sides (default: torch's)")
    parser.add_argument("--quick", action="store_true", help="two repetitions; on a CPU only the small model, about 3 minutes")
    parser.add_argument("--add", action="store_true", help="keep results of an earlier run on this machine that this run does not measure")
    parser.add_argument("--minutes", type=float, help="time budget (default: 28, or 3 with --quick)")
    parser.add_argument("--only", help="regular expression for the parts to measure, such as 'training smollm2' or scaling")
    options = parser.parse_args(arguments)
    options.minutes = options.minutes or (3 if options.quick else 28)
    return options


def _quiet() -> None:
    """Silence the peers' progress bars and warnings, which also cost time."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    if trl_is_installed():
        from datasets.utils.logging import disable_progress_bar

        disable_progress_bar()


def main(arguments: list[str]) -> int:
    """Run the benchmarks; return the exit code."""
    options = _options(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    _quiet()
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = _Bench(options)
    description = machine.describe(bench.device)
    if description["load_before"] > 1:
        log.warning("other programs are running (load %s); the ratios are unreliable", description["load_before"])
    sections = CUDA if bench.device.type == "cuda" else QUICK if options.quick else FULL
    earlier = report.read(options.out) if options.add else None

    def write() -> None:
        results = bench.results(description, arguments)
        report.write(report.joined(earlier, results) if earlier else results, options.out)

    try:
        if earlier:
            # Refuse another machine before anything is measured.
            report.joined(earlier, bench.results(description, arguments))
        for section in sections:
            if bench.is_selected(section.name):
                bench.compare(section)
                # Write after each section: the machine may be reclaimed before the end.
                write()
        bench.scale()
    except ClusterLoraError as error:
        log.error("error: %s", error)  # noqa: TRY400  (one line for a person)
        return 1
    write()
    log.info("%.1f min: wrote %s", bench.minutes, options.out / "benchmarks.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
