"""Adapters trained by several worker threads, or alone in their batches, equal adapters trained without either."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from clusterlora.chat.encoder import PromptEncoder
from clusterlora.engine import passes, training_loop
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import TrainingJob, TrainingResult
from clusterlora.engine.load_balancing import partition_by_load
from clusterlora.engine.single_slot import SingleSlotLora
from clusterlora.engine.worker_threads import WorkerThreads
from clusterlora.models.base import load_base
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
from clusterlora.values import Turn

pytestmark = pytest.mark.numeric

RECIPE = Recipe(rank=4, alpha=8, dropout=0.3, epochs=2, batch_size=2, learning_rate=5e-3)
CPU = torch.device("cpu")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def trained(base: BaseModel, folder: Path, names: str, *, recipe: Recipe = RECIPE) -> dict[str, TrainingResult]:
    encoder = PromptEncoder(base.tokenizer, max_length=256)
    jobs = [
        TrainingJob(
            name,
            name,
            recipe,
            tuple(
                encoder.encode_dialogues([(Turn("user", "light " * (i % 3 + 1)), Turn("assistant", f"Set to {i * ord(name)}."))])[0]
                for i in range(ord(name) % 4 + 3)
            ),
            folder / name,
        )
        for name in names
    ]
    return {r.job.name: r for r in training_loop.train(base, jobs, micro_batch=2, run_log=SilentLog())}


def weights(result: TrainingResult) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in load_file(result.folder / "adapter_model.safetensors").values()]).double()


@pytest.mark.whole
@pytest.mark.usefixtures("three_threads")
def test_worker_threads_do_not_change_the_result(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base(str(tiny_base_folder))
    base = replace(base, model=base.model.double())
    seen: set[str] = set()
    share = passes.Passes._run_shard

    def watched(self: passes.Passes, *arguments: Any, **named: Any) -> object:
        seen.add(threading.current_thread().name)
        return share(self, *arguments, **named)

    monkeypatch.setattr(passes.Passes, "_run_shard", watched)
    shared = trained(base, tmp_path / "shared", "abcde")
    assert len(seen) > 1, "nobody shared"
    torch.set_num_threads(1)
    one_by_one = {name: trained(base, tmp_path / "alone", name)[name] for name in "abcde"}
    for name, result in shared.items():
        torch.testing.assert_close(weights(result), weights(one_by_one[name]), rtol=0, atol=1e-9)
        assert result.losses == pytest.approx(one_by_one[name].losses, rel=1e-9)


@pytest.mark.whole
def test_an_adapter_in_bfloat16_equals_itself_trained_alone_within_rounding(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(tiny_base_folder), dtype="bfloat16")
    alone: list[int] = []
    begin = SingleSlotLora.__init__

    def counted(self: SingleSlotLora, *arguments: Any) -> None:
        alone.append(1)
        begin(self, *arguments)

    monkeypatch.setattr(SingleSlotLora, "__init__", counted)
    gentle = replace(RECIPE, learning_rate=5e-4)
    in_company = trained(base, tmp_path / "company", "ab", recipe=gentle)["a"]
    n_calls = len(alone)
    by_itself = trained(base, tmp_path / "alone", "a", recipe=gentle)["a"]
    assert len(alone) > n_calls, "an adapter alone was trained as if there were others"
    assert by_itself.losses == pytest.approx(in_company.losses, rel=0.02)


@pytest.mark.usefixtures("three_threads")
def test_worker_threads_return_results_in_order_and_restore_pytorchs_threads() -> None:
    workers = WorkerThreads(CPU)
    assert workers.map(lambda n: (n, torch.get_num_threads()), [1, 2, 3]) == [(1, 1), (2, 1), (3, 1)]
    assert workers.map(lambda _: torch.get_num_threads(), [1]) == [3], "a single part has all threads"
    with pytest.raises(ZeroDivisionError):
        workers.map(lambda n: 1 // n, [1, 0, 2])
    assert torch.get_num_threads() == 3
    workers.close()


def test_a_gpu_has_one_worker() -> None:
    assert WorkerThreads(torch.device("cuda")).n_workers == 1


@given(st.dictionaries(st.integers(), st.integers(0, 100)), st.integers(1, 5))
def test_a_partition_by_load_has_every_item_once_and_bins_of_like_load(load_by_item: dict[int, int], n_bins: int) -> None:
    bins = partition_by_load(load_by_item, n_bins)
    assert sorted(item for items in bins for item in items) == sorted(load_by_item)
    loads = [sum(load_by_item[item] for item in items) for items in bins]
    assert max(loads) - min(loads) <= max(load_by_item.values(), default=0)
