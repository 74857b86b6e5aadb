"""When a CUDA graph is captured; the graphs themselves are tested on a GPU (test_on_a_gpu.py)."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clusterlora.engine import cuda_graphs
from clusterlora.engine.cuda_graphs import CudaGraphCache, bucket_size
from clusterlora.engine.packing import Padding, Segment, pack


@dataclass(frozen=True)
class Batch:
    x: Tensor
    segments: tuple[Segment, ...]
    masks: Tensor | None = None
    backward: bool = True


@dataclass(frozen=True)
class Nested:
    ids: Tensor
    inner: Batch
    own: Tensor
    n: int


def batch_of(*lengths: int, backward: bool = True) -> Batch:
    packing = pack(torch.tensor(lengths), Padding(32, uniform=True))
    return Batch(torch.rand(len(packing.row), 3), packing.segments, backward=backward)


class FakeGraph:
    """A graph that lists the arguments it was captured with and returns twice their x."""

    captured: list[Batch]

    def __init__(self, _function: Any, batch: Batch, pool: Any, _device: torch.device) -> None:
        self.captured.append(batch)
        self.pool = pool or "pool"

    def replay(self, batch: Batch) -> Tensor:
        return 2 * batch.x


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    FakeGraph.captured = []
    monkeypatch.setattr(cuda_graphs, "CudaGraph", FakeGraph)
    monkeypatch.setattr(cuda_graphs, "on_device", lambda batch, _device: batch)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    return FakeGraph.captured


def double(batch: Batch) -> Tensor:
    return batch.x + batch.x


@given(st.integers(1, 5000))
def test_sizes_are_few_and_at_most_a_quarter_more_than_needed(n: int) -> None:
    assert n <= bucket_size(n) <= max(n, 1.25 * n)
    assert bucket_size(bucket_size(n)) == bucket_size(n) >= bucket_size(n - 1)
    assert len({bucket_size(m) for m in range(1, n + 1)}) <= 4 * n.bit_length()


def test_a_graph_is_captured_when_a_signature_recurs_and_returns_what_the_function_returns(captured: list[Batch]) -> None:
    graphs = CudaGraphCache[Batch](torch.device("cuda"))
    batches = [batch_of(5, 9), batch_of(40, 3), batch_of(30, 2), batch_of(5, 9, backward=False), batch_of(1), batch_of(7, 7)]
    for batch in batches:
        assert torch.equal(graphs(double, batch), 2 * batch.x)
    # Two rows of at most 32 tokens came a second time with the third batch, and a third time with the last.
    assert captured == [batches[2]]
    graphs(double, replace(batches[0], masks=torch.ones(1)))
    assert len(captured) == 1, "masks make another signature"


def test_beyond_the_largest_number_of_graphs_the_function_runs_without(captured: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_MAX_GRAPHS", 2)
    graphs = CudaGraphCache[Batch](torch.device("cuda"))
    for _ in range(3):
        for n_rows in range(1, 6):
            batch = batch_of(*[4] * n_rows)
            assert torch.equal(graphs(double, batch), 2 * batch.x)
    assert len(captured) == 2


def test_a_cpu_captures_no_graph(captured: list[Batch]) -> None:
    graphs = CudaGraphCache[Batch](torch.device("cpu"))
    for _ in range(3):
        graphs(double, batch_of(5))
    assert not captured


def test_tensors_that_share_memory_are_copied_at_once_and_are_where_they_were() -> None:
    memory = torch.arange(64, dtype=torch.uint8)
    inner = Batch(memory[32:48].view(torch.float32).view(2, 2), ())
    outer = Nested(memory[:16].view(torch.int64), inner, torch.tensor([7.0]), n=3)
    storages = cuda_graphs._storages(outer)
    assert [len(storage) for storage in storages] == [64, 4]
    copies = [storage.clone() for storage in storages]
    like = cuda_graphs._like(outer, copies)
    memory.zero_()
    assert like.ids.tolist() == torch.arange(16, dtype=torch.uint8).view(torch.int64).tolist()
    assert torch.equal(like.inner.x, torch.arange(32, 48, dtype=torch.uint8).view(torch.float32).view(2, 2))
    assert (like.own.item(), like.n) == (7.0, 3)
    copies[0].copy_(storages[0])
    assert not like.ids.any()
    assert not like.inner.x.any()


def test_a_signature_has_the_shapes_of_nested_tensors_and_not_their_values() -> None:
    def of(n: int, value: float) -> object:
        return cuda_graphs._signature(Nested(torch.zeros(2), Batch(torch.full((n, 3), value), ()), torch.ones(1), n=1))

    assert of(2, 1.0) == of(2, 5.0) != of(3, 1.0)
