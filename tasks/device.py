"""One run at a time on a GPU, guarded by the operating system."""

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from prefect.logging import get_run_logger

from clusterlora.models.device import usual_device

POLL_SECONDS = 1.0


def visible_gpu() -> str | None:
    """Return the UUID of the first GPU this process may use; None where it has none to use.

    Raises:
        BadSettings: its worker was given a GPU that PyTorch does not see.
    """
    import torch

    return None if usual_device() == "cpu" else str(torch.cuda.get_device_properties(0).uuid)


@contextmanager
def exclusive(device: str | None, locks: Path) -> Generator[None]:
    """Hold the lock of a device while the block runs; without a device (CPU) nothing is locked.

    A training outlives its worker when that is killed, and the next worker would start another one on the same device. The kernel
    releases the lock however its holder ends, so unlike a Prefect concurrency slot it needs no expiry.
    """
    if device is None:
        yield
        return
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{device}.lock").open("a+") as lock:
        _acquire(lock.fileno(), device)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _acquire(descriptor: int, device: str) -> None:
    logged = False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not logged:
                holder = os.pread(descriptor, 20, 0).decode() or "unknown"
                get_run_logger().info("waiting for device %s, in use by process %s", device, holder)
                logged = True
            time.sleep(POLL_SECONDS)
