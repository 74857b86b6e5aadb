"""CUDA graphs of functions of tensors: all kernels of a call are launched at once instead of one by one.

A pass over a small model is thousands of kernels, and a GPU runs them faster than Python launches them. So a call whose shapes recur is
captured once and replayed from then on. A captured graph reads and writes fixed addresses: the arguments of later calls are copied
into the tensors it was captured with, and every other tensor must keep its address.
Source: CUDA C++ Programming Guide, "CUDA Graphs"; torch.cuda.CUDAGraph.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Arguments = TypeVar("Arguments")
"""A dataclass whose tensors, and those of dataclasses in it, may change from call to call."""

_MAX_GRAPHS = 96
"""Graphs kept; thousands of kernels take some megabytes per graph. Further signatures run without a graph."""


class CudaGraphCache(Generic[Arguments]):
    """Graphs of one function of one dataclass that returns a tensor; on a GPU a graph is captured when a signature recurs.

    A signature is the shapes and dtypes of the tensors and the values of all other fields, those of dataclasses in it included. The
    returned tensor is valid until the next call. The function must not branch on CPU tensor values: it is captured once per signature, then replayed. It is passed to every call
    rather than stored, so that an object caching graphs of its own method is no reference cycle and its memory is freed with it.
    """

    def __init__(self, device: torch.device, *, enabled: bool = True) -> None:
        self._enabled = enabled and device.type == "cuda"
        self._device = device
        self._n_calls: Counter[object] = Counter()
        self._graphs: dict[object, CudaGraph[Arguments]] = {}
        self._pool: Any = None

    def __call__(self, function: Callable[[Arguments], Tensor], arguments: Arguments) -> Tensor:
        """Return the function's result for these arguments, whose tensors may be on the CPU: they are copied to the device."""
        if not self._enabled:
            return function(on_device(arguments, self._device))
        signature = _signature(arguments)
        if signature not in self._graphs:
            self._n_calls[signature] += 1
            # The first call runs eagerly: it initialises libraries, which must not happen during a capture.
            if self._n_calls[signature] == 1 or len(self._graphs) == _MAX_GRAPHS:
                return function(on_device(arguments, self._device))
            self._graphs[signature] = graph = CudaGraph(function, on_device(arguments, self._device, copy=True), self._pool)
            self._pool = graph.pool
        return self._graphs[signature].replay(arguments)


class CudaGraph(Generic[Arguments]):
    """A captured call, with the memory that its kernels read and write."""

    def __init__(self, function: Callable[[Arguments], Tensor], arguments: Arguments, pool: Any) -> None:
        """Capture the function, whose arguments the graph keeps; `pool` is the memory pool of a graph that this one shares, or None."""
        self._inputs = _tensors(arguments)
        self._graph = torch.cuda.CUDAGraph()
        # Graphs may share a pool because only one of them runs at a time.
        with torch.cuda.graph(self._graph, pool=pool):
            self._output = function(arguments)

    @property
    def pool(self) -> Any:
        """The graph's memory pool, for other graphs to share."""
        return self._graph.pool()

    def replay(self, arguments: Arguments) -> Tensor:
        """Return the result for other arguments of the captured signature."""
        for mine, tensor in zip(self._inputs, _tensors(arguments), strict=True):
            mine.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._output


def on_device(arguments: Arguments, device: torch.device, *, copy: bool = False) -> Arguments:
    """Return a dataclass with its tensors, and those of dataclasses in it, on a device; copies of all of them if so asked."""
    moved = {
        f.name: value.to(device, non_blocking=True, copy=copy) if isinstance(value, Tensor) else on_device(value, device, copy=copy)
        for f, value in zip(fields(arguments), _values(arguments), strict=True)  # pyright: ignore[reportArgumentType]
        if isinstance(value, Tensor) or _has_tensors(value)
    }
    return replace(arguments, **moved)  # pyright: ignore[reportType]


def pinned(arguments: Arguments) -> Arguments:
    """Return a dataclass with its tensors on the CPU in page-locked memory, from which a GPU copies while the CPU goes on."""
    moved = {
        f.name: value.pin_memory() if isinstance(value, Tensor) else pinned(value)
        for f, value in zip(fields(arguments), _values(arguments), strict=True)  # pyright: ignore[reportArgumentType]
        if (isinstance(value, Tensor) and not value.is_cuda) or _has_tensors(value)
    }
    return replace(arguments, **moved)  # pyright: ignore[reportType]


def bucket_size(n: int) -> int:
    """Return n rounded up to 1, 2, ..., 8, 10, 12, 14, 16, 20, ...: few different sizes, each at most a quarter larger than n."""
    step = max(1, 1 << max(0, (n - 1).bit_length() - 3))
    return -(-n // step) * step


def _signature(arguments: object) -> object:
    return tuple(
        (value.shape, value.dtype) if isinstance(value, Tensor) else _signature(value) if _has_tensors(value) else value
        for value in _values(arguments)
    )


def _tensors(arguments: object) -> list[Tensor]:
    """Return the tensors of a dataclass and of the dataclasses in it."""
    return [
        tensor
        for value in _values(arguments)
        for tensor in ([value] if isinstance(value, Tensor) else _tensors(value) if _has_tensors(value) else [])
    ]


def _values(arguments: Any) -> list[object]:
    return [getattr(arguments, f.name) for f in fields(arguments)]


def _has_tensors(value: object) -> bool:
    return is_dataclass(value) and any(isinstance(inner, Tensor) for inner in _values(value))
