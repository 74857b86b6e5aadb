"""What this process computes on: a device, and cores."""

import os
import sys
from pathlib import Path

from clusterlora.errors import BadSettings

DEVICES_VARIABLE, THREADS_VARIABLE = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of every period that the processes of a container may compute, as `docker run --cpus` sets them."""
_NO_DEVICE = ("", "-1", "NoDevFiles")
"""What hides itself and all devices after it, as the driver reads it; Slurm names the last for a job without GPUs."""


def named_devices(value: str) -> list[str]:
    """Return the devices that a value of CUDA_VISIBLE_DEVICES names."""
    devices = [device.strip() for device in value.split(",")]
    return devices[: next((i for i, device in enumerate(devices) if device in _NO_DEVICE), len(devices))]


def usual_device() -> str:
    """Return `cuda`, the first visible GPU, else `cpu`.

    Raises:
        BadSettings: this process was given a GPU that PyTorch does not see. A CPU would take a hundred times as long, unnoticed.
    """
    import torch

    if problem := unseen_gpu():
        raise BadSettings(
            f"{problem}; `clusterlora doctor` checks both. "
            f"To use the CPU, start the command, or after `clusterlora down` its workers, with {DEVICES_VARIABLE}= (nothing)"
        )
    return "cuda" if torch.cuda.is_available() else "cpu"


def unseen_gpu() -> str | None:
    """Return that this process was given a GPU which PyTorch does not see; None where that is not so."""
    given = os.environ.get(DEVICES_VARIABLE, "")
    if not named_devices(given):
        return None
    import torch

    if torch.cuda.is_available():
        return None
    return f"{DEVICES_VARIABLE} = {given!r} gives this process a GPU, and PyTorch sees none"


def usable_cores() -> int:
    """Return the number of cores this process may use; `taskset`, a job scheduler or a container may restrict it."""
    return max(1, min(_schedulable_cores(), _quota()))


def limit_threads() -> None:
    """Let libraries that this process has yet to load start as many threads as it may use cores: they do not know of its time's limit."""
    if _quota() < _schedulable_cores():
        os.environ.setdefault(THREADS_VARIABLE, str(usable_cores()))


def _schedulable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _quota() -> int:
    """Return the cores whose time the control group of this process may take, rounded up; any number where it has no limit."""
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return sys.maxsize if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return sys.maxsize
