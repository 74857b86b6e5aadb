"""Worker threads that run the parts of one pass side by side on a CPU.

The products of a small model are too short to be split over threads; parts of a batch in threads of their own scale. PyTorch releases
the GIL inside its kernels.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")

_MAX_WORKERS = 4
"""Between kernels Python runs one thread at a time, so more workers wait for each other."""


def n_worker_threads(device: torch.device) -> int:
    """Return how many parts of a pass run side by side: one unless on a CPU, where it follows PyTorch's threads."""
    return min(_MAX_WORKERS, torch.get_num_threads()) if device.type == "cpu" else 1


class WorkerThreads:
    """A pool that shares PyTorch's threads: n parts at once get 1/n of them each."""

    def __init__(self, device: torch.device) -> None:
        """One worker unless on a CPU; CUDA queues kernels itself."""
        self._n_threads = torch.get_num_threads()
        self.n_workers = n_worker_threads(device)
        self._pool = ThreadPoolExecutor(self.n_workers, thread_name_prefix="pass") if self.n_workers > 1 else None

    def map(self, function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """Return the function's result for each part, in order; a single part runs in the caller's thread with all of PyTorch's threads.

        An exception of any part is raised after all parts have ended.
        """
        if self._pool is None or len(parts) < 2:
            return [function(part) for part in parts]
        n_threads_per_part = max(1, self._n_threads // len(parts))

        def run_part(part: Part) -> Result:
            torch.set_num_threads(n_threads_per_part)
            return function(part)

        try:
            futures = [self._pool.submit(run_part, part) for part in parts]
            return [future.result() for future in futures]
        finally:
            torch.set_num_threads(self._n_threads)

    def close(self) -> None:
        """Shut the pool down after its running parts."""
        if self._pool is not None:
            self._pool.shutdown()
