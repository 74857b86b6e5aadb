"""Free and peak memory, and failed allocations, on a GPU and on a CPU."""

import gc
import logging
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING

from clusterlora.errors import OutOfMemory
from clusterlora.models.memory import total_memory_bytes

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
)

CHUNK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Bytes of the widest activation of one chunk. On a CPU, larger tensors do not fit into its caches and are returned to the operating system
after every use, which costs more than fewer and larger products save."""


def tokens_per_chunk(width: int, device: "torch.device", dtype: "torch.dtype") -> int:
    """Return the number of tokens whose activation of this width takes `CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES[device.type] // (width * dtype.itemsize))


def is_allocation_failure(error: BaseException) -> bool:
    """Return whether an exception reports a failed allocation."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


class BatchSize:
    """How many dialogues are computed at once: halved whenever memory runs out. What is computed does not depend on it."""

    def __init__(self, value: int, *, name: str = "micro-batch", halve: bool = True) -> None:
        """Begin with `value`; without `halve` it stays, and the caller is told."""
        self.value = value
        self._name = name
        self._halve = halve

    @contextmanager
    def attempt(self, doing: str) -> Generator[None]:
        """Halve the number if an allocation fails inside the block, and go on after the block.

        Raises:
            OutOfMemory: an allocation failed and the number is 1, or is not to be halved.
        """
        try:
            with allocation_failures(micro_batch=self.value, doing=doing, name=self._name):
                yield
        except OutOfMemory as error:
            if not self._halve or self.value == 1:
                raise
            log.warning("%s", error)
            self.value //= 2
        else:
            return
        # Not in the handler, in which the error still holds its traceback.
        free_cached_memory()


def free_cached_memory() -> None:
    """Give back the memory of reference cycles, and what PyTorch keeps of a GPU for later."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def allocation_failures(*, micro_batch: int, doing: str, name: str = "micro-batch") -> Generator[None]:
    """Raise OutOfMemory for a failed allocation inside the block; other exceptions pass unchanged."""
    try:
        yield
    except Exception as error:
        if not is_allocation_failure(error) or isinstance(error, OutOfMemory):
            raise
        fix = (
            f"the next attempt uses {name} {micro_batch // 2}"
            if micro_batch > 1
            else "lower max_length or recipe.rank, or use bfloat16 or a smaller base model"
        )
        first_line = str(error).partition("\n")[0]
        # The traceback's frames hold the tensors that filled the memory; the caller needs it to recover.
        clear_frames(error.__traceback__)
        raise OutOfMemory(
            f"{doing} ran out of memory at {name} {micro_batch}, peak {format_bytes(peak_memory_bytes())} ({first_line}); {fix}",
            micro_batch=micro_batch,
        ) from error


def peak_memory_bytes() -> int:
    """Return the peak memory of this process: allocated on the GPU if there is one, else resident on the CPU."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def format_bytes(n_bytes: int) -> str:
    """Return an amount of memory in gigabytes: `1.50 GB`."""
    return f"{n_bytes / 1e9:.2f} GB"


def device_name() -> str:
    """Return the name and memory of the device this process computes on; devices of one name have the same memory."""
    import torch

    name = torch.cuda.get_device_properties(0).name if torch.cuda.is_available() else "cpu"
    return f"{name}, {total_memory_bytes() / 2**30:.0f} GiB"


def free_memory_by_device() -> list[int]:
    """Return the memory that can be allocated on each visible GPU, or without any on the CPU alone."""
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [free_memory_bytes(torch.device("cuda", i)) for i in range(n_gpus)] or [free_memory_bytes(torch.device("cpu"))]


def free_memory_bytes(device: "torch.device") -> int:
    """Return the memory that can be allocated on a device."""
    import torch

    if device.type == "cuda":
        # PyTorch's cached but unused memory can be allocated as well.
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        available = None
    # Outside Linux, half of the physical memory is a conservative estimate.
    return int(available[1]) * 1024 if available else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
