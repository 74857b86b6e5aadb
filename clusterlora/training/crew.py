"""Threads that share a pass on a CPU.

Products of a small model are over before a second thread has come to help with them; two threads with products of their own are not in
each other's way. Python holds no thread up while the others multiply.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Found = TypeVar("Found")

_MOST = 4
"""Parts that are computed side by side: what Python does between products is done by one thread at a time."""


class Crew:
    """As many threads as PyTorch has for a product, given to a few products at a time instead."""

    def __init__(self, device: torch.device) -> None:
        """Hire nobody where the device is no CPU: a GPU has a queue of its own."""
        self._n_threads = torch.get_num_threads()
        self.size = min(_MOST, self._n_threads) if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.size, thread_name_prefix="pass") if self.size > 1 else None

    def each(self, work: Callable[[Part], Found], parts: Sequence[Part]) -> list[Found]:
        """Return what is found of each part; one alone has all threads. What a part raises is raised when all are done."""
        if self._pool is None or len(parts) < 2:
            return [work(part) for part in parts]
        threads_each = max(1, self._n_threads // len(parts))

        def with_its_threads(part: Part) -> Found:
            torch.set_num_threads(threads_each)
            return work(part)

        try:
            futures = [self._pool.submit(with_its_threads, part) for part in parts]
            return [future.result() for future in futures]
        finally:
            torch.set_num_threads(self._n_threads)

    def close(self) -> None:
        """Let the threads go, once they are done."""
        if self._pool is not None:
            self._pool.shutdown()
