"""How much memory there is, how much was used, and what a failed allocation looks like, on a GPU and on a CPU."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING

from clusterlora.errors import OutOfMemory

if TYPE_CHECKING:
    import torch

_SIGNS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")


CHUNK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Bytes of the widest activation of one pass. On a CPU, larger blocks of memory fall out of its caches and are given back to the system
after every use, which costs more than the few products it saves."""


def tokens_at_once(width: int, device: "torch.device", dtype: "torch.dtype") -> int:
    """Return how many tokens' widest activation, of so many numbers each, takes `CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES[device.type] // (width * dtype.itemsize))


def is_allocation_failure(error: BaseException) -> bool:
    """Return whether an exception says that memory could not be had; any other error is not one."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextmanager
def allocation_failures(*, micro_batch: int, doing: str) -> Iterator[None]:
    """Turn a failed allocation inside the block into OutOfMemory; everything else passes untouched."""
    try:
        yield
    except Exception as error:
        if not is_allocation_failure(error) or isinstance(error, OutOfMemory):
            raise
        fix = (
            f"the next attempt uses micro-batch {micro_batch // 2}"
            if micro_batch > 1
            else "shorten model.max_length, lower recipe.rank, use model.dtype=bfloat16 or a smaller base model"
        )
        first_line = str(error).partition("\n")[0]
        # The frames that the error went through hold what filled the memory, and whoever hears of it needs some.
        clear_frames(error.__traceback__)
        raise OutOfMemory(
            f"{doing} ran out of memory at micro-batch {micro_batch}, peak {format_bytes(peak_memory_bytes())} ({first_line}); {fix}",
            micro_batch=micro_batch,
        ) from error


def peak_memory_bytes() -> int:
    """Return the most memory this process has held: on the GPU when there is one, else resident on the CPU."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def format_bytes(n_bytes: int) -> str:
    """Return an amount of memory in gigabytes: `1.50 GB`."""
    return f"{n_bytes / 1e9:.2f} GB"


def device_name() -> str:
    """Return what this process computes on, by kind and memory: devices of one name hold the same."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"cpu, {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def free_memory_bytes(device: "torch.device") -> int:
    """Return the memory that could be allocated on a device at this moment."""
    import torch

    if device.type == "cuda":
        # What torch keeps for itself and does not use can be had as well.
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        available = None
    # Elsewhere than on Linux, half of what is built in is a careful guess.
    return int(available[1]) * 1024 if available else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
