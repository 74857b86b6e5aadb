"""Describes the machine of a benchmark: hardware, package versions, matrix-product rate, memory in use."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import clock
from deployments.service_specs import usable_cores

PACKAGES = ("clusterlora", "torch", "transformers", "peft", "trl", "accelerate")


def describe(device: torch.device) -> dict[str, Any]:
    """Return the description of the machine, with its load: a busy machine makes every ratio doubtful."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),
        "device": str(device),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def versions() -> dict[str, str]:
    """Return package versions and the git revision."""
    versions_by_name = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions_by_name[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions_by_name[package] = "not installed"
    git = ["git", "describe", "--always", "--dirty"]
    has_git = shutil.which("git") is not None
    described = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout if has_git else ""
    versions_by_name["revision"] = described.strip() or "unknown"
    return versions_by_name


def peak_flops_per_second(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.5) -> float:
    """Return the best measured rate of square matrix products in this dtype, the denominator of MFU."""
    n = 8192 if device.type == "cuda" else 1536
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator).to(device, dtype) for _ in range(2))
    best = float("inf")
    deadline = time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < deadline:
        start = clock(device)
        torch.mm(a, b)
        best = min(best, clock(device) - start)
    return 2 * n**3 / best


def memory_bytes(device: torch.device) -> int:
    """Return the memory in use: allocated on the GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
