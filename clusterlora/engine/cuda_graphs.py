"""CUDA graphs of functions of tensors: all kernels of a call are launched at once instead of one by one.

A pass over a small model is thousands of kernels, and a GPU runs them faster than Python launches them. So a call whose shapes recur is
captured once and replayed from then on. A captured graph reads and writes fixed addresses: the arguments of later calls are copied
into the tensors it was captured with, and every other tensor must keep its address.
Source: CUDA C++ Programming Guide, "CUDA Graphs"; torch.cuda.CUDAGraph.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import accumulate
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Arguments = TypeVar("Arguments")
"""A dataclass whose tensors, and those of dataclasses in it, may change from call to call."""

_MAX_GRAPHS = 96
"""Graphs kept; thousands of kernels take some megabytes per graph. Further signatures run without a graph."""
_ALIGNED = 16
"""Tensors that share memory begin at multiples of this many bytes, as kernels want them."""


class CudaGraphCache(Generic[Arguments]):
    """Graphs of one function of one dataclass that returns a tensor; on a GPU a graph is captured when a signature recurs.

    A signature is the shapes and dtypes of the tensors and the values of all other fields, those of dataclasses in it included. The
    returned tensor is valid until the next call. The function must not branch on CPU tensor values: it is captured once per signature,
    then replayed. It is passed to every call rather than stored, so that an object caching graphs of its own method is no reference cycle
    and its memory is freed with it.
    """

    def __init__(self, device: torch.device, *, enabled: bool = True) -> None:
        self._enabled = enabled and device.type == "cuda"
        self._device = device
        self._n_calls: Counter[object] = Counter()
        self._graphs: dict[object, CudaGraph[Arguments]] = {}
        self._pool: Any = None

    def __call__(self, function: Callable[[Arguments], Tensor], arguments: Arguments) -> Tensor:
        """Return the function's result for these arguments, whose tensors may be on the CPU: they are copied to the device."""
        if self._device.type != "cuda":
            return function(on_device(arguments, self._device))
        # Kernels are launched, and graphs captured, on the current device.
        with torch.cuda.device(self._device):
            return self._call(function, arguments)

    def _call(self, function: Callable[[Arguments], Tensor], arguments: Arguments) -> Tensor:
        if not self._enabled:
            return function(on_device(arguments, self._device))
        signature = _signature(arguments)
        if signature not in self._graphs:
            self._n_calls[signature] += 1
            # The first call runs eagerly: it initialises libraries, which must not happen during a capture.
            if self._n_calls[signature] == 1 or len(self._graphs) == _MAX_GRAPHS:
                return function(on_device(arguments, self._device))
            self._graphs[signature] = graph = CudaGraph(function, arguments, self._pool, self._device)
            self._pool = graph.pool
        return self._graphs[signature].replay(arguments)


class CudaGraph(Generic[Arguments]):
    """A captured call, with the memory that its kernels read and write."""

    def __init__(self, function: Callable[[Arguments], Tensor], arguments: Arguments, pool: Any, device: torch.device) -> None:
        """Capture the function; `pool` is the memory pool of another graph, which this one shares, or None."""
        mine = [storage.to(device, copy=True) for storage in _storages(arguments)]
        inputs = _like(arguments, mine)
        self._inputs = mine
        self._graph = torch.cuda.CUDAGraph()
        # Graphs may share a pool because only one of them runs at a time. Another thread may allocate page-locked memory meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = function(inputs)

    @property
    def pool(self) -> Any:
        """The graph's memory pool, for other graphs to share."""
        return self._graph.pool()

    def replay(self, arguments: Arguments) -> Tensor:
        """Return the result for other arguments of the captured signature."""
        for mine, storage in zip(self._inputs, _storages(arguments), strict=True):
            mine.copy_(storage, non_blocking=True)
        self._graph.replay()
        return self._output


def on_device(arguments: Arguments, device: torch.device) -> Arguments:
    """Return a dataclass with its tensors, and those of dataclasses in it, on a device."""
    return _with_tensors(arguments, iter([tensor.to(device, non_blocking=True) for tensor in _tensors(arguments)]))


def pinned(arguments: Arguments, device: torch.device) -> Arguments:
    """Return a dataclass with its tensors one after another in page-locked memory, from which a GPU takes them in one copy.

    Meanwhile the CPU goes on. For a CPU it stays as it is.
    """
    if device.type != "cuda":
        return arguments
    tensors = _tensors(arguments)
    starts = list(accumulate((_ALIGNED * math.ceil(tensor.nbytes / _ALIGNED) for tensor in tensors), initial=0))
    memory = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    views = [
        memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        for start, tensor in zip(starts, tensors, strict=False)
    ]
    return _with_tensors(arguments, iter(views))


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


def _with_tensors(arguments: Any, tensors: Iterator[Tensor]) -> Any:
    """Return the same with other tensors, in the order of `_tensors`."""
    changed = {
        f.name: next(tensors) if isinstance(value, Tensor) else _with_tensors(value, tensors)
        for f, value in zip(fields(arguments), _values(arguments), strict=True)
        if isinstance(value, Tensor) or _has_tensors(value)
    }
    return replace(arguments, **changed)


def _storages(arguments: object) -> list[Tensor]:
    """Return what is to be copied: tensors on a GPU, and the memory of those on the CPU, once where they share it."""
    storages: dict[int, Tensor] = {}
    for tensor in _tensors(arguments):
        key = tensor.untyped_storage().data_ptr()
        if tensor.is_cuda:
            assert id(tensor) not in storages, "a tensor of the GPU is in two fields"
            storages[id(tensor)] = tensor
        elif key not in storages:
            storages[key] = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    return list(storages.values())


def _like(arguments: Arguments, storages: Sequence[Tensor]) -> Arguments:
    """Return a dataclass whose tensors are in copies of `_storages`, where they were in the original."""
    copies = iter(storages)
    copy_by_storage: dict[int, Tensor] = {}
    tensors = []
    for tensor in _tensors(arguments):
        if tensor.is_cuda:
            tensors.append(next(copies))
            continue
        key = tensor.untyped_storage().data_ptr()
        if key not in copy_by_storage:
            copy_by_storage[key] = next(copies)
        assert tensor.is_contiguous(), "a tensor of the CPU has gaps"
        start = tensor.storage_offset() * tensor.itemsize
        tensors.append(copy_by_storage[key][start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
    return _with_tensors(arguments, iter(tensors))


def _values(arguments: Any) -> list[object]:
    return [getattr(arguments, f.name) for f in fields(arguments)]


def _has_tensors(value: object) -> bool:
    return is_dataclass(value) and any(isinstance(inner, Tensor) for inner in _values(value))
