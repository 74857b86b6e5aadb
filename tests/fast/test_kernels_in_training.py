"""Training with the kernels of a GPU, interpreted where there is none: what they add up to is what PEFT computes."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clusterlora.engine import kernels, ragged_attention, training_loop
from clusterlora.engine.attention import Heads
from clusterlora.engine.base import BaseModel
from clusterlora.engine.families.decoder import Decoder
from clusterlora.engine.fused_linear import FusedLinear
from clusterlora.engine.packing import Padding
from clusterlora.engine.ragged_attention import RowStarts
from clusterlora.models.base import load_base
from clusterlora.ports.run_log import SilentLog
from clusterlora.recipe import Recipe
from tests.gpu.test_on_a_gpu import apart, jobs

pytest.importorskip("triton", reason="triton is for Linux only")

RECIPE = Recipe(rank=3, alpha=8, dropout=0.25, epochs=2, batch_size=2, learning_rate=5e-3)


def attend(heads: Heads, rows: RowStarts, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what flash attention does, row by row."""
    leaves = tuple(part.detach().clone().requires_grad_() for part in (q, k, v))
    starts = rows.starts.tolist()
    assert starts[-1] == len(q)
    with torch.enable_grad():
        parts = [
            functional.scaled_dot_product_attention(
                *(part[first:end].transpose(0, 1)[None] for part in leaves), is_causal=True, enable_gqa=heads.n_kv < heads.n
            )[0].transpose(0, 1)
            for first, end in pairwise(starts)
            if first < end
        ]
        assert max(map(len, parts)) <= rows.longest
        out = torch.cat(parts)
    return out.detach(), (*leaves, out)


def backward(_heads: Heads, _rows: RowStarts, saved: tuple[Tensor, ...], do: Tensor) -> tuple[Tensor, ...]:
    *leaves, out = saved
    return torch.autograd.grad(out, leaves, do)


@pytest.fixture(params=["ragged", "uniform"])
def with_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a decoder on the CPU compute as on a GPU."""

    def one_product(fused: FusedLinear, x: Tensor) -> list[Tensor]:
        assert fused.weight is not None
        return list(functional.linear(x, fused.weight, fused.bias).split(fused.d_outs, -1))

    padding = Padding(1, ragged=True) if request.param == "ragged" else Padding(32, uniform=True)
    monkeypatch.setattr(kernels, "serve", lambda _device, dtype: dtype in (torch.float32, torch.bfloat16))
    monkeypatch.setattr(Decoder, "padding", Padding(32, uniform=True))
    monkeypatch.setattr(Decoder, "training_padding", padding)
    monkeypatch.setattr(FusedLinear, "products", one_product)
    monkeypatch.setattr(ragged_attention, "attend", attend)
    monkeypatch.setattr(ragged_attention, "backward", backward)


@pytest.mark.usefixtures("with_kernels")
def test_adapters_trained_by_kernels_are_those_of_the_cpu(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = train_all(load_base(str(tiny_base_folder), dtype="float32"), tmp_path / "kernels")
    monkeypatch.undo()
    theirs = train_all(load_base(str(tiny_base_folder), dtype="float32"), tmp_path / "cpu")
    for one, other in zip(ours, theirs, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert apart(one, other) < 1e-3


def train_all(base: BaseModel, folder: Path) -> list:
    results = training_loop.train(base, jobs(base, folder, 3, recipe=RECIPE, n_dialogues=3), micro_batch=2, run_log=SilentLog())
    return sorted(results, key=lambda result: result.job.key)
