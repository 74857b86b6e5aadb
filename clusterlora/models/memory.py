"""What a failed allocation looks like, on a GPU and on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

from clusterlora.errors import OutOfMemory

_SIGNS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")


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
        raise OutOfMemory(
            f"{doing} ran out of memory at micro-batch {micro_batch} ({first_line}); {fix}", micro_batch=micro_batch
        ) from error


def peak_memory_bytes() -> int:
    """Return the most memory this process has held: on the GPU when there is one, else resident on the CPU."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
