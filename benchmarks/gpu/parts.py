"""The parts of the benchmark: what each measures, in the order of how much it is wanted."""

import gc
import importlib
import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.flops import Shape, shape_of
from benchmarks.generation import mounted, one_by_one, ours
from benchmarks.gpu import peers
from benchmarks.gpu.measuring import STUDY_STEPS, Training, copy_rate, flops, matrix_rate, peak_gib, train
from benchmarks.gpu.profiling import ProfiledSteps
from benchmarks.gpu.shapes import MISSION, SHAPES, Lengths, jobs, n_tokens, questions, random_base
from benchmarks.measure import clock
from clusterlora.engine import training_loop
from clusterlora.engine.base import BaseModel
from clusterlora.engine.inference_backends import inference_backend
from clusterlora.engine.job import TrainingJob
from clusterlora.engine.kinds import read_weights
from clusterlora.models.quantised import bitsandbytes_arguments, compute_dequantised, quantisable
from clusterlora.ports.run_log import SilentLog

OURS = "clusterlora"
SHORT = Lengths((32, 16))

Row = dict[str, Any]
"""A line of a part: `contender`, and its figures or the reason why there are none as `missing`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a part is measured. `matrix_rate` is the card's, in operations per second."""

    device: torch.device
    matrix_rate: float
    scratch: Path
    out: Path
    seconds_left: float
    unsloth: Path | None = None
    """A folder of Unsloth and what it needs."""


class Part(Protocol):
    """A part. `usual_seconds` is what it takes on a card like the H200, with what it builds."""

    @property
    def name(self) -> str: ...
    @property
    def usual_seconds(self) -> float: ...
    def describe(self) -> Mapping[str, Any]:
        """Return what is measured."""
        ...

    def measure(self, at: Setting) -> list[Row]:
        """Return the lines of the part."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The card's own rates, which the others are compared with."""

    name: str = "card"
    usual_seconds: float = 5
    n: int = 8192
    copied_bytes: int = 4 * 2**30

    def describe(self) -> Mapping[str, Any]:
        """See `Part`."""
        return {"matrices": f"{self.n} x {self.n}, bfloat16, random", "copied_gib": self.copied_bytes / 2**30}

    def measure(self, at: Setting) -> list[Row]:
        """See `Part`."""
        return [
            {
                "contender": "the card",
                "tflops_per_second": matrix_rate(at.device, self.n) / 1e12,
                "copied_gb_per_second": copy_rate(at.device, self.copied_bytes) / 1e9,
            }
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Adapters trained together, each saved as a PEFT folder; steps that are not taken are added at the measured rate."""

    name: str
    usual_seconds: float
    shape: str
    adapters: int
    dialogues: int = 30
    epochs: int = 3
    lengths: Lengths = MISSION
    repetitions: int = 1
    nf4: bool = False

    def describe(self) -> Mapping[str, Any]:
        """See `Part`."""
        return {
            "model": self.shape,
            "base": "nf4" if self.nf4 else "bfloat16",
            "adapters": self.adapters,
            "steps_measured": self.dialogues * self.epochs // 2,
            "steps_per_adapter": STUDY_STEPS,
            "lengths": str(self.lengths),
            "repetitions": self.repetitions,
        }

    def measure(self, at: Setting) -> list[Row]:
        """See `Part`."""
        if self.nf4 and importlib.util.find_spec("bitsandbytes") is None:
            return [{"contender": OURS, "missing": "not installed: bitsandbytes"}]
        base, size = _base(self.shape, at.device, nf4=self.nf4)
        all_jobs = self._jobs(at.scratch, self.dialogues, self.epochs)
        train(base, self._jobs(at.scratch, 2, 1))
        peak_gib(at.device)
        runs = [train(base, all_jobs) for _ in range(self.repetitions)]
        return [_rates(runs, all_jobs, flops(size, all_jobs), at) | {"peak_gib": peak_gib(at.device)}]

    def _jobs(self, scratch: Path, dialogues: int, epochs: int) -> list[TrainingJob]:
        return jobs(SHAPES[self.shape], self.adapters, dialogues=dialogues, epochs=epochs, scratch=scratch, lengths=self.lengths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """One adapter: milliseconds per step of the last steps, after shapes of batches have recurred, and of the first ones."""

    name: str
    usual_seconds: float
    shape: str
    steps: int = 300
    """Steps that count; twice as many precede them."""

    def describe(self) -> Mapping[str, Any]:
        """See `Part`."""
        return {"model": self.shape, "base": "bfloat16", "adapters": 1, "steps": self.steps, "steps_before": 2 * self.steps}

    def measure(self, at: Setting) -> list[Row]:
        """See `Part`."""
        base, size = _base(self.shape, at.device)
        # Each third of the steps sees every dialogue once.
        alone = jobs(SHAPES[self.shape], 1, dialogues=2 * self.steps, epochs=3, scratch=at.scratch)
        train(base, jobs(SHAPES[self.shape], 1, dialogues=4, epochs=1, scratch=at.scratch))
        run = train(base, alone)
        ends = (*run.ends[: self.steps + 1], *run.ends[-self.steps - 1 :])
        first, last = ends[self.steps] - ends[0], ends[-1] - ends[self.steps + 1]
        tokens = n_tokens(alone) / 3
        rows: list[Row] = [
            {
                "contender": OURS,
                "ms_per_step": 1000 * last / self.steps,
                "ms_per_step_at_first": 1000 * first / self.steps,
                "tokens_per_second": tokens / last,
                "share_of_matrix_rate": flops(size, alone) / 3 / last / at.matrix_rate,
                "mean_loss": run.mean_loss,
            }
        ]
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """The peers, one adapter after another, on the shape, rows, dtype and batches of another part."""

    beside: Together
    usual_seconds: float
    dialogues: int = 30
    peers: tuple[str, ...] = peers.SHARING

    @property
    def name(self) -> str:
        """See `Part`."""
        return f"{self.beside.name}-{'unsloth' if self.peers == (peers.UNSLOTH,) else 'peers'}"

    def describe(self) -> Mapping[str, Any]:
        """See `Part`."""
        return {
            "model": self.beside.shape,
            "base": "bfloat16",
            "adapters": 1,
            "steps_measured": self.dialogues // 2,
            "steps_per_adapter": STUDY_STEPS,
            "lengths": str(self.beside.lengths),
        }

    def measure(self, at: Setting) -> list[Row]:
        """See `Part`."""
        run = peers.PeerRun(self.beside.shape, str(at.device), self.dialogues, self.beside.lengths.fixed, self.peers)
        packages = at.unsloth if peers.UNSLOTH in self.peers else None
        results = peers.measure(run, seconds=max(30.0, min(3 * self.usual_seconds, at.seconds_left)), packages=packages)
        return [_peer_row(result, at) for result in results]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The kernels of some passes of this many adapters, written to profile-NAME.txt beside the results; measured with --profile alone."""

    name: str
    shape: str
    adapters: int
    passes: int
    usual_seconds: float = 15

    def describe(self) -> Mapping[str, Any]:
        """See `Part`."""
        return {"model": self.shape, "base": "bfloat16", "adapters": self.adapters, "passes": self.passes}

    def measure(self, at: Setting) -> list[Row]:
        """See `Part`."""
        base, _ = _base(self.shape, at.device)
        # Shapes of batches have recurred by then, so that most passes are replayed.
        before = 4 * self.passes
        profiled = jobs(SHAPES[self.shape], self.adapters, dialogues=2 * (before + self.passes + 2), epochs=1, scratch=at.scratch)
        log = ProfiledSteps(at.device, first=before * self.adapters, last=(before + self.passes) * self.adapters)
        train(base, profiled, log)
        file = at.out / f"{self.name}.txt"
        log.write(file, f"{self.passes} passes of {self.adapters} adapters, {self.shape}")
        return [{"contender": OURS, "file": file.name}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Many:
    """Very many adapters in one call against few: what waits must not make those that train dearer."""

    name: str
    usual_seconds: float
    shape: str
    adapters: int
    few: int
    lengths: Lengths = SHORT
    dialogues: int = 8
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")

    def describe(self) -> Mapping[str, Any]:
        """See `Part`."""
        return {
            "model": self.shape,
            "base": "bfloat16",
            "adapters": self.adapters,
            "against": self.few,
            "steps_per_adapter": self.dialogues // 2,
            "lengths": str(self.lengths),
            "target_modules": list(self.target_modules),
            "rank": 8,
        }

    def measure(self, at: Setting) -> list[Row]:
        """See `Part`."""
        base, _ = _base(self.shape, at.device)
        self._train(base, at, self.few)
        rows: list[Row] = []
        for n in (self.few, self.adapters):
            peak_gib(at.device)
            run = self._train(base, at, n)
            rows.append(
                {
                    "contender": f"{OURS}, {n} adapters in one call",
                    "seconds": run.seconds,
                    "ms_per_adapter": 1000 * run.seconds / n,
                    "adapters_per_hour": 3600 * n / run.seconds,
                    "peak_gib": peak_gib(at.device),
                    "mean_loss": run.mean_loss,
                }
            )
        rows[1]["cost_per_adapter_against_few"] = rows[1]["ms_per_adapter"] / rows[0]["ms_per_adapter"]
        return rows

    def _train(self, base: BaseModel, at: Setting, n: int) -> Training:
        return train(
            base,
            jobs(
                SHAPES[self.shape],
                n,
                dialogues=self.dialogues,
                epochs=1,
                scratch=at.scratch,
                lengths=self.lengths,
                target_modules=self.target_modules,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers of adapters mixed in one batch, against the base alone in the same engine, and against PEFT one adapter after another."""

    name: str
    usual_seconds: float
    shape: str
    adapters: int
    new_tokens: int = 32
    repetitions: int = 3
    peft_adapters: int = 6

    def describe(self) -> Mapping[str, Any]:
        """See `Part`."""
        return {
            "model": self.shape,
            "base": "bfloat16",
            "adapters": self.adapters,
            "adapters_of_peft": self.peft_adapters,
            "new_tokens": self.new_tokens,
            "repetitions": self.repetitions,
            "lengths": "prompts as long as the mission's",
        }

    def measure(self, at: Setting) -> list[Row]:
        """See `Part`."""
        shape = SHAPES[self.shape]
        base, size = _base(self.shape, at.device)
        trained = jobs(shape, self.adapters, dialogues=2, epochs=1, scratch=at.scratch)
        folder_by_name = {result.name: result.folder for result in training_loop.train(base, trained, micro_batch=2, run_log=SilentLog())}
        folders = [folder_by_name[job.name] for job in trained]
        asked = questions(shape, self.adapters)
        backend = inference_backend(base, [read_weights(folder) for folder in folders])
        try:
            of_base = [type(question)(question.prompt, 0, ()) for question in asked]
            rows = [
                self._row(contender, size, at, items, lambda items=items: ours(backend, items, self.new_tokens, batch_size=self.adapters))
                for contender, items in ((f"{OURS}, {self.adapters} adapters mixed", asked), (f"{OURS}, no adapter", of_base))
            ]
        finally:
            backend.close()
        mixed, alone = (row["answers_per_second"] for row in rows)
        rows[0]["share_of_rate_without_adapters"] = mixed / alone
        model = mounted(base, folders[: self.peft_adapters])
        try:
            few = asked[: self.peft_adapters]
            rows.append(
                self._row(
                    "PEFT, one adapter after another", size, at, few, lambda: one_by_one(model, base, few, self.new_tokens), warm_ups=1
                )
            )
        finally:
            model.unload()
        return rows

    def _row(self, contender: str, size: Shape, at: Setting, items: Sequence[Any], answer: Any, *, warm_ups: int = 3) -> Row:
        # A shape that occurs a second time is captured, so three are needed before it is replayed alone.
        for _ in range(warm_ups):
            answer()
        seconds, answers = [], []
        for _ in range(self.repetitions if warm_ups > 1 else 1):
            begun = clock(at.device)
            answers = answer()
            seconds.append(clock(at.device) - begun)
        needed = sum(size.generating(len(item.prompt), len(ids)) for item, ids in zip(items, answers, strict=True))
        each = statistics.median(seconds)
        return {
            "contender": contender,
            "answers_per_second": len(items) / each,
            "new_tokens_per_second": sum(map(len, answers)) / each,
            "share_of_matrix_rate": needed / each / at.matrix_rate,
            "mean_new_tokens": sum(map(len, answers)) / len(answers),
            "seconds": seconds,
        }


def _rates(runs: Sequence[Training], some_jobs: Sequence[TrainingJob], n_flops: float, at: Setting) -> Row:
    """Return the figures of the median run, its steps extrapolated to the study's; rates of passes are as measured."""
    run = sorted(runs, key=lambda run: run.seconds)[(len(runs) - 1) // 2]
    scale = STUDY_STEPS / some_jobs[0].total_steps
    rest = run.seconds - run.pass_seconds
    whole = rest + run.pass_seconds * scale
    return {
        "contender": OURS,
        "adapters_per_hour": 3600 * len(some_jobs) / whole,
        "tokens_per_second": n_tokens(some_jobs) * scale / whole,
        "share_of_matrix_rate": n_flops * scale / whole / at.matrix_rate,
        "share_in_passes": n_flops / run.pass_seconds / at.matrix_rate,
        "ms_per_pass": 1000 * run.pass_seconds / some_jobs[0].total_steps,
        "seconds": run.seconds,
        "seconds_in_passes": run.pass_seconds,
        "seconds_of_the_rest": rest,
        "seconds_of_all_repetitions": [run.seconds for run in runs],
        "mean_loss": run.mean_loss,
    }


def _peer_row(result: Mapping[str, Any], at: Setting) -> Row:
    if "missing" in result:
        return {"contender": result["peer"], "missing": result["missing"]}
    scale = STUDY_STEPS / result["steps"]
    whole = result["fixed_seconds"] + result["step_seconds"] * scale
    return {
        "contender": result["peer"],
        "adapters_per_hour": 3600 / whole,
        "tokens_per_second": result["tokens"] * scale / whole,
        "share_of_matrix_rate": result["flops"] * scale / whole / at.matrix_rate,
        "share_in_passes": result["flops"] / result["step_seconds"] / at.matrix_rate,
        "ms_per_pass": 1000 * result["step_seconds"] / result["steps"],
        "seconds_of_the_rest": result["fixed_seconds"],
        "mean_loss": result["mean_loss"],
        "autocast": result["autocast"],
        "versions": result["versions"],
    }


def _base(name: str, device: torch.device, *, nf4: bool = False) -> tuple[BaseModel, Shape]:
    """Return a base and its sizes, those before it is quantised."""
    base = random_base(SHAPES[name], device)
    size = shape_of(base.model)
    if nf4:
        _quantise(base, device)
    return base, size


def _quantise(base: BaseModel, device: torch.device) -> None:
    """Put bitsandbytes' layers in place of the linear ones, as transformers does when it loads a base in nf4."""
    bnb = importlib.import_module("bitsandbytes")
    arguments = bitsandbytes_arguments("nf4", "bfloat16")
    chosen = set(quantisable(base.model))
    for parent in list(base.model.modules()):
        for name, layer in list(parent.named_children()):
            if layer not in chosen:
                continue
            linear: Any = layer
            quantised = bnb.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=torch.bfloat16,
                compress_statistics=arguments["bnb_4bit_use_double_quant"],
                quant_type=arguments["bnb_4bit_quant_type"],
                device="meta",
            )
            quantised.weight = bnb.nn.Params4bit(
                linear.weight.data,
                requires_grad=False,
                compress_statistics=arguments["bnb_4bit_use_double_quant"],
                quant_type=arguments["bnb_4bit_quant_type"],
                module=quantised,
            ).to(device)
            quantised.bias = linear.bias
            setattr(parent, name, quantised)
    gc.collect()
    compute_dequantised(base.model)
