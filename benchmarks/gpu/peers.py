"""The peers in training, each shape's in a process of its own: Liger's kernels stay in the modules that they are put into.

A peer that cannot run is reported with the reason and the others go on. Results are lines of JSON after RESULT on stdout.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

TRAINER = "transformers Trainer + PEFT"
TRL = "TRL SFTTrainer"
LIGER = "TRL SFTTrainer with Liger's kernels"
UNSLOTH = "Unsloth, without dropout"
NEEDS = {
    TRAINER: ("peft", "accelerate"),
    TRL: ("trl", "datasets"),
    LIGER: ("trl", "datasets", "liger_kernel"),
    UNSLOTH: ("unsloth", "unsloth_zoo"),
}
"""Modules without which a peer is not measured, by peer, in the order of measuring: Liger patches what it is used on."""
SHARING = (TRAINER, TRL, LIGER)
"""Peers that are measured in one process. Unsloth patches everything as soon as it is imported."""

NOT_MEASURED = {
    "mLoRA": "its package, mlora 0.5.2, asks for torch below 2.4 and transformers below 4.45 (read in the wheel's metadata)",
}
"""Peers that cannot run beside the versions that the others need, with the reason and how it was found."""

_MARK = "RESULT "
_ROOT = Path(__file__).resolve().parents[2]
_VERSIONS = ("transformers", "peft", "accelerate", "trl", "datasets", "liger-kernel", "unsloth")


@dataclass(frozen=True, slots=True)
class PeerRun:
    """What the process measures."""

    shape: str
    device: str
    dialogues: int
    fixed_lengths: tuple[int, int] | None
    peers: tuple[str, ...] = SHARING


def measure(run: PeerRun, *, seconds: float, packages: Path | None = None) -> list[dict[str, Any]]:
    """Return a result per peer, with `missing` as the reason where there is none; the process is ended after so many seconds.

    Args:
        packages: a folder of packages that this process alone may import.
    """
    request = json.dumps({"shape": run.shape, "device": run.device, "dialogues": run.dialogues, "fixed_lengths": run.fixed_lengths})
    command = [sys.executable, "-m", __name__, request, *run.peers]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output,
        tempfile.TemporaryDirectory(prefix="clusterlora-peers-") as compiled,
    ):
        # No hub is asked for anything.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "UNSLOTH_DISABLE_STATISTICS": "1"}
        environment["UNSLOTH_COMPILE_LOCATION"] = compiled
        if packages is not None:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), str(packages))))
        try:
            ended = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=seconds, check=False, env=environment, cwd=_ROOT
            )
            reason = f"its process ended with exit status {ended.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"its process took longer than {seconds:.0f} s"
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    results: list[dict[str, Any]] = [json.loads(line[len(_MARK) :]) for line in lines if line.startswith(_MARK)]
    measured = {result["peer"] for result in results}
    said = next((line for line in reversed(lines) if not line.startswith(_MARK)), "")
    return [*results, *({"peer": peer, "missing": f"{reason}: {said[:200]}"} for peer in run.peers if peer not in measured)]


def main(arguments: Sequence[str]) -> int:
    """Measure the peers and write a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=json.loads, help="a PeerRun without its peers, as JSON")
    parser.add_argument("peers", nargs="+", choices=NEEDS)
    options = parser.parse_args(arguments)
    fixed = options.run.pop("fixed_lengths")
    run = PeerRun(**options.run, fixed_lengths=tuple(fixed) if fixed else None, peers=tuple(options.peers))
    if UNSLOTH in run.peers and importlib.util.find_spec("unsloth"):
        # Before transformers, which it patches.
        importlib.import_module("unsloth")
    for result in _results(run):
        sys.stdout.write(f"{_MARK}{json.dumps(result)}\n")
        sys.stdout.flush()
    return 0


def _results(run: PeerRun) -> Iterator[dict[str, Any]]:
    import torch
    from transformers.utils import logging as transformers_logging

    from benchmarks.flops import shape_of
    from benchmarks.gpu.shapes import SHAPES, Lengths, jobs, random_base

    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    shape = SHAPES[run.shape]
    base = random_base(shape, torch.device(run.device))
    size = shape_of(base.model)
    for peer in run.peers:
        absent = [module for module in NEEDS[peer] if importlib.util.find_spec(module) is None]
        if absent:
            yield {"peer": peer, "missing": f"not installed: {', '.join(absent)}"}
            continue
        with tempfile.TemporaryDirectory(prefix="clusterlora-peers-") as folder:
            (job,) = jobs(shape, 1, dialogues=run.dialogues, epochs=1, scratch=Path(folder), lengths=Lengths(run.fixed_lengths))
            begun = time.perf_counter()
            try:
                result = _timed(peer, base, job)
            except Exception as error:  # noqa: BLE001  (whatever a peer raises, the others go on)
                first_line = (str(error).splitlines() or [""])[0]
                yield {"peer": peer, "missing": f"{type(error).__name__}: {first_line[:200]}"}
                continue
            n_flops = sum(map(size.training, job.sequences))
            n_tokens = sum(len(row.ids) for row in job.sequences)
            yield {
                "peer": peer,
                **result,
                "steps": job.total_steps,
                "tokens": n_tokens,
                "flops": n_flops,
                "seconds": time.perf_counter() - begun,
                "versions": {name: _version(name) for name in _VERSIONS},
            }


def _timed(peer: str, base: Any, job: Any) -> dict[str, Any]:
    """Return a measurement in the faster of two modes: a bfloat16 base with or without autocast of the float32 adapters."""
    from benchmarks.trainers import Timing, train_with_trainer, train_with_trl

    if peer == UNSLOTH:
        return _with_unsloth(base, job)
    train = {TRAINER: train_with_trainer, TRL: train_with_trl, LIGER: partial(train_with_trl, liger=True)}[peer]
    modes: list[Callable[[Any, Any], Timing]] = [partial(train, autocast=autocast) for autocast in (False, True)]
    short = replace(job, sequences=job.sequences[: 3 * job.recipe.batch_size])
    refusals: dict[int, Exception] = {}
    step_seconds: dict[int, float] = {}
    for number, mode in enumerate(modes):
        try:
            _once(mode, base, short)
            step_seconds[number] = _once(mode, base, short).step_seconds
        except RuntimeError as error:
            refusals[number] = error
    if not step_seconds:
        raise refusals[0]
    best = min(step_seconds, key=lambda number: step_seconds[number])
    timing = _once(modes[best], base, job)
    return {
        "step_seconds": timing.step_seconds,
        "fixed_seconds": timing.fixed_seconds,
        "mean_loss": timing.mean_loss,
        "autocast": bool(best),
    }


def _with_unsloth(base: Any, job: Any) -> dict[str, Any]:
    """Return a measurement with its fast products, which need an adapter without dropout, and autocast, which it is made for."""
    import torch

    from benchmarks.trainers import train_with_trainer

    unsloth: Any = importlib.import_module("unsloth")
    recipe, folder = job.recipe, job.scratch.parent / "base"
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    longest = max(len(row.ids) for row in job.sequences)
    loaded, _ = unsloth.FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=longest, dtype=torch.bfloat16, load_in_4bit=False, local_files_only=True
    )
    its_base = replace(base, model=loaded)
    begun = time.perf_counter()
    model = unsloth.FastLanguageModel.get_peft_model(
        loaded,
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.0,
        target_modules=list(recipe.target_modules),
        bias="none",
        use_gradient_checkpointing=False,
        random_state=recipe.seed,
    )
    building = time.perf_counter() - begun
    train = partial(train_with_trainer, autocast=True, model=model)
    for _ in range(2):
        _once(train, its_base, replace(job, sequences=job.sequences[: 3 * recipe.batch_size]))
    timing = _once(train, its_base, job)
    return {
        "step_seconds": timing.step_seconds,
        "fixed_seconds": timing.fixed_seconds + building,
        "mean_loss": timing.mean_loss,
        "autocast": True,
    }


def _once(mode: Callable[[Any, Any], Any], base: Any, job: Any) -> Any:
    try:
        return mode(base, job)
    finally:
        shutil.rmtree(job.scratch, ignore_errors=True)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
