"""Functions of tensors that a GPU is given whole, instead of kernel by kernel.

A pass over a small model is thousands of kernels that take a GPU less time than it takes Python to ask for them. So what comes again
with the same shapes is recorded and from then on started as one (CUDA graphs). A recorded function may use nothing but the memory it
was recorded with: tensors it is given are copied to where the first ones were, and all others must stay where they are.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Given = TypeVar("Given")

_MOST_RECORDED = 96
"""Recordings kept; each holds its kernels' arguments, some megabytes for thousands of them. Shapes beyond these run as ever."""


class Replays(Generic[Given]):
    """One function of one dataclass that returns a tensor; on a GPU, recorded for every kind of argument that is given twice.

    Arguments are of one kind when their tensors have the same shapes and everything else in them is equal. What is returned holds until
    the next call. Anything the function does must leave the values of tensors on the CPU out of account: it runs once for all of a kind.
    The function comes with every call: whoever keeps its own method's recordings lets their memory go when it goes itself.
    """

    def __init__(self, device: torch.device) -> None:
        self._on = device.type == "cuda"
        self._times: Counter[object] = Counter()
        self._recordings: dict[object, _Recording[Given]] = {}
        self._pool: Any = None

    def __call__(self, function: Callable[[Given], Tensor], given: Given) -> Tensor:
        """Return what the function does of this argument."""
        if not self._on:
            return function(given)
        kind = _kind(given)
        if kind not in self._recordings:
            self._times[kind] += 1
            # The first time runs as ever, which also sets up what may not be set up while recording.
            if self._times[kind] == 1 or len(self._recordings) == _MOST_RECORDED:
                return function(given)
            self._recordings[kind] = recording = _Recording(function, given, self._pool)
            self._pool = recording.pool
        return self._recordings[kind].run(given)


class _Recording(Generic[Given]):
    """A function's kernels, recorded with the memory they read and write."""

    def __init__(self, function: Callable[[Given], Tensor], given: Given, pool: Any) -> None:
        self._inputs = {name: tensor.clone() for name, tensor in _tensors(given).items()}
        self._graph = torch.cuda.CUDAGraph()
        # One pool for all recordings: only one of them runs at a time.
        with torch.cuda.graph(self._graph, pool=pool):
            self._output = function(replace(given, **self._inputs))  # pyright: ignore[reportArgumentType, reportCallIssue]

    @property
    def pool(self) -> Any:
        return self._graph.pool()

    def run(self, given: Given) -> Tensor:
        for name, tensor in _tensors(given).items():
            self._inputs[name].copy_(tensor)
        self._graph.replay()
        return self._output


def like_size(n: int) -> int:
    """Return the next of 1, 2, ..., 8, 10, 12, 14, 16, 20, ...: few sizes, each at most a quarter more than is needed."""
    step = max(1, 1 << max(0, (n - 1).bit_length() - 3))
    return -(-n // step) * step


def _kind(given: object) -> object:
    return tuple(
        (value.shape, value.dtype) if isinstance(value, Tensor) else value
        for value in (getattr(given, f.name) for f in fields(given))  # pyright: ignore[reportArgumentType]
    )


def _tensors(given: object) -> dict[str, Tensor]:
    named = ((f.name, getattr(given, f.name)) for f in fields(given))  # pyright: ignore[reportArgumentType]
    return {name: value for name, value in named if isinstance(value, Tensor)}
