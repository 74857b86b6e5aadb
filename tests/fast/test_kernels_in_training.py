"""Training and answers with the kernels of a GPU, interpreted where there is none, are those of a CPU."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clusterlora.chat.encoder import PromptEncoder
from clusterlora.engine import kernels, ragged_attention
from clusterlora.engine.attention import Heads
from clusterlora.engine.base import BaseModel
from clusterlora.engine.families.decoder import Decoder
from clusterlora.engine.fused_linear import FusedLinear
from clusterlora.engine.generation import Question, Reply
from clusterlora.engine.inference_backends import inference_backend
from clusterlora.engine.job import TrainingResult
from clusterlora.engine.kinds import read_weights
from clusterlora.engine.packing import Padding
from clusterlora.engine.peft_folder import write_peft_folder
from clusterlora.engine.ragged_attention import RowStarts
from clusterlora.engine.stacked_lora import targeted_layers
from clusterlora.models.base import load_base
from clusterlora.recipe import Recipe
from clusterlora.values import Turn
from tests.gpu.test_on_a_gpu import apart, jobs, train

pytest.importorskip("triton", reason="triton is for Linux only")

RECIPE = Recipe(rank=3, alpha=8, dropout=0.25, epochs=1, batch_size=2, learning_rate=5e-3)


def attend(heads: Heads, rows: RowStarts, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what flash attention does, row by row."""
    leaves = tuple(part.detach().clone().requires_grad_() for part in (q, k, v))
    starts = rows.starts.tolist()
    assert starts[-1] == len(q)
    with torch.enable_grad():
        parts = []
        for first, end in pairwise(starts):
            if first < end:
                queries, keys, values = (part[first:end].transpose(0, 1)[None] for part in leaves)
                attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=heads.n_kv < heads.n)
                parts.append(attended[0].transpose(0, 1))
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


@pytest.mark.whole  # Triton's interpreter takes most of a minute
@pytest.mark.usefixtures("with_kernels")
def test_adapters_trained_by_kernels_are_those_of_the_cpu(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = train_all(load_base(str(tiny_base_folder), dtype="float32"), tmp_path / "kernels", frozen := tmp_path / "frozen")
    monkeypatch.undo()
    theirs = train_all(load_base(str(tiny_base_folder), dtype="float32"), tmp_path / "cpu", frozen)
    for one, other in zip(ours, theirs, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
        assert apart(one, other) < 1e-3


def train_all(base: BaseModel, folder: Path, frozen: Path) -> list[TrainingResult]:
    """Train one adapter alone and one on top of a frozen one."""
    if not frozen.exists():
        write_frozen(base, frozen)
    alone, on_top = jobs(base, folder, 2, recipe=RECIPE, n_dialogues=2)
    return train(base, [alone, replace(on_top, frozen_adapter=frozen)])


def write_frozen(base: BaseModel, folder: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {name: (layer.d_in, layer.d_out) for name, layer in targeted_layers(base.model, ("q_proj", "v_proj", "down_proj")).items()}
    tensors = {f"{name}.lora_A.weight": 0.3 * torch.randn(2, d_in, generator=generator) for name, (d_in, _) in shapes.items()}
    tensors |= {f"{name}.lora_B.weight": 0.3 * torch.randn(d_out, 2, generator=generator) for name, (_, d_out) in shapes.items()}
    write_peft_folder(folder, tensors, replace(RECIPE, rank=2, target_modules=("q_proj", "v_proj", "down_proj")), base=base.name)


@pytest.mark.usefixtures("with_kernels")
def test_answers_by_kernels_are_those_of_the_cpu(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frozen(load_base(str(tiny_base_folder), dtype="float32"), tmp_path)
    ours = answers(load_base(str(tiny_base_folder), dtype="float32"), tmp_path)
    monkeypatch.undo()
    theirs = answers(load_base(str(tiny_base_folder), dtype="float32"), tmp_path)
    for one, other in zip(ours, theirs, strict=True):
        assert one.ids == other.ids
        assert one.nll == pytest.approx(other.nll, rel=1e-4)


def answers(base: BaseModel, adapter: Path) -> list[Reply]:
    encoder = PromptEncoder(base.tokenizer, max_length=256)
    (turn,) = encoder.encode_turns([((Turn("user", "ask"),), "yes")])
    backend = inference_backend(base, [read_weights(adapter)])
    questions = [Question(turn.prompt, slot, turn.response) for slot in (0, 1)]
    try:
        return sorted(backend.reply(questions, max_new_tokens=3, batch_size=2), key=lambda reply: reply.number)
    finally:
        backend.close()
