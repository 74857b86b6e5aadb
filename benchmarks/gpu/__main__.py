"""Measures on one GPU, part by part, the most wanted first, and writes each as soon as it ends: `python -m benchmarks.gpu --out docs`."""

import argparse
import datetime
import gc
import importlib.metadata
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.gpu import page, results
from benchmarks.gpu.parts import Part, Profile, Setting
from benchmarks.gpu.plan import FULL, TINY
from benchmarks.gpu.results import FILE, Record, rounded

_PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "trl", "liger-kernel", "bitsandbytes")
_SCRATCH_BYTES = 6 * 2**30
"""Adapters of one part, before they are deleted."""
_ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str]) -> int:
    """Measure the parts that are wanted; return the exit status: 1 without a GPU or when a part failed."""
    began = time.monotonic()
    parts = TINY if "--tiny" in arguments else FULL
    options = _options(arguments, [part.name for part in parts])
    if options.page:
        page.write(options.out)
        return 0
    if not options.tiny and not torch.cuda.is_available():
        _say(began, "there is no GPU on this machine that PyTorch can use: run this on one, or look at docs/gpu.md")
        return 1
    device = torch.device("cpu" if options.tiny else "cuda")
    _quiet()
    card, revision = _card(device), options.revision or os.environ.get("CLUSTERLORA_REVISION") or _revision()
    file = options.out / FILE
    records = results.read(file)
    matrix_rate = 0.0
    n_failed = 0
    for part in parts:
        is_card = part is parts[0]
        left = options.minutes * 60 - (time.monotonic() - began)
        known = records.get(part.name)
        if not is_card:
            if options.part and part.name not in options.part:
                continue
            if not options.part and isinstance(part, Profile) and not options.profile:
                continue
            if not options.part and known and not known.failed and (known.revision, known.card) == (revision, card):
                _say(began, f"{part.name}: measured before on this card at {revision}")
                continue
            if part.usual_seconds > left:
                _say(
                    began, f"{part.name}: left out, it usually takes {part.usual_seconds:.0f} s and {left:.0f} s are left; raise --minutes"
                )
                continue
        _say(began, f"{part.name}: begins, usually {part.usual_seconds:.0f} s")
        record = _measured(part, device, matrix_rate, options, left, card=card, revision=revision, arguments=arguments)
        n_failed += record.failed is not None
        if is_card and record.failed is None:
            matrix_rate = 1e12 * record.rows[0]["tflops_per_second"]
        records[part.name] = record
        results.write(records, file)
        _report(began, record)
        if is_card and record.failed:
            return 1
    page.write(options.out)
    _say(began, f"wrote {file} and {options.out / 'gpu.md'}")
    return 1 if n_failed else 0


def _measured(
    part: Part,
    device: torch.device,
    matrix_rate: float,
    options: argparse.Namespace,
    seconds_left: float,
    *,
    card: dict[str, Any],
    revision: str,
    arguments: Sequence[str],
) -> Record:
    begun = time.monotonic()
    rows: list[dict[str, Any]] = []
    failed = None
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="clusterlora-gpu-", dir=_folder_in_memory()) as scratch:
        at = Setting(device, matrix_rate, Path(scratch), options.out, seconds_left, options.unsloth)
        try:
            rows = part.measure(at)
        except Exception as error:
            # The other parts are worth having all the same.
            logging.getLogger(__name__).debug("part %s failed", part.name, exc_info=True)
            failed = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Record(
        part=part.name,
        command=shlex.join(["python", "-m", "benchmarks.gpu", *arguments]),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        seconds=time.monotonic() - begun,
        card=card,
        revision=revision,
        versions={"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        settings=part.describe(),
        rows=rows,
        failed=failed,
    )


def _folder_in_memory() -> str | None:
    """Return a folder that is no disk, so that it is not a disk that is measured; None where there is none, or too small a one."""
    folder = Path("/dev/shm")
    return str(folder) if folder.is_dir() and shutil.disk_usage(folder).free > _SCRATCH_BYTES else None


def _report(began: float, record: Record) -> None:
    if record.failed:
        _say(began, f"{record.part}: failed after {record.seconds:.0f} s: {record.failed}")
    for row in record.rows:
        figures = ", ".join(f"{key} {rounded(value)}" for key, value in row.items() if isinstance(value, float))
        _say(began, f"{record.part}: {row['contender']}: {row.get('missing') or figures}")
    _say(began, f"{record.part}: took {record.seconds:.0f} s")


def _say(began: float, line: str) -> None:
    sys.stdout.write(f"{time.monotonic() - began:6.1f} s  {line}\n")
    sys.stdout.flush()


def _options(arguments: Sequence[str], names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help=f"folder of {FILE} and of its page, gpu.md (default: docs)")
    parser.add_argument("--part", nargs="+", choices=names, metavar="NAME", help=f"measure these, also again: {', '.join(names)}")
    parser.add_argument("--minutes", type=float, default=8, help="time for all parts; what does not fit is left out (default: 8)")
    parser.add_argument("--revision", help="what is measured, where this is no git checkout (or CLUSTERLORA_REVISION)")
    parser.add_argument("--profile", action="store_true", help="also write the kernels of passes beside the results, profile-NAME.txt")
    parser.add_argument("--unsloth", type=Path, metavar="FOLDER", help="packages of Unsloth and its needs, which only its process imports")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from the results")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _card(device: torch.device) -> dict[str, Any]:
    """Return what identifies the card."""
    if device.type != "cuda":
        return {"name": "no GPU", "memory_gib": 0, "driver": "none", "cuda": "none"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30),
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]) or "unknown",
        "cuda": str(torch.version.cuda),
    }


def _revision() -> str:
    return _output(["git", "describe", "--always", "--dirty"]) or "unknown"


def _output(command: Sequence[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    ended = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    return ended.stdout.strip() if ended.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
