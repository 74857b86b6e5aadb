"""On a GPU: a pass by kernels has the losses and gradients of one by PyTorch's operations, captured and replayed, too."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clusterlora.chat.encoder import TokenSequence
from clusterlora.engine import kernels
from clusterlora.engine.backends import lora_backend
from clusterlora.engine.base import BaseModel
from clusterlora.engine.batch import RowSlots, TrainingBatch
from clusterlora.engine.ragged import RaggedRows
from clusterlora.models.base import load_base
from clusterlora.recipe import Recipe
from clusterlora.settings import Dtype

RECIPE = Recipe(rank=4)


def passes(base: BaseModel, n: int) -> list[tuple[Tensor, Tensor]]:
    """Return the losses of rows of several adapters and the gradients of all slots, n times."""
    generator = torch.Generator().manual_seed(0)
    rows = [TokenSequence(tuple(range(5, 5 + length)), (False, *[True] * (length - 1))) for length in (9, 40, 17, 33, 8)]
    lora, backend = lora_backend(base, RECIPE, n_slots=3, rank=RECIPE.rank, probe=rows[0].ids[:8])
    lora.parameters.copy_(0.1 * torch.randn(lora.parameters.shape, generator=generator))
    keeps = (torch.rand(len(rows), lora.n_features, generator=generator) > 0.2).float()
    slots = RowSlots(torch.tensor([2, 0, 2, 1, 0]), 2 * keeps.to(lora.parameters))
    batch = TrainingBatch(RaggedRows.of(rows), slots, torch.zeros(len(rows), dtype=torch.long), torch.full((len(rows),), 0.1).double())
    results = []
    for _ in range(n):
        lora.gradients.zero_()
        losses = backend(batch).clone()
        results.append((losses.cpu(), lora.gradients.clone().cpu()))
    return results


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_a_pass_by_kernels_is_one_by_torch(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: Dtype, most: float) -> None:
    base = load_base(str(tiny_base_folder), device="cuda", dtype=dtype)
    eager, captured, replayed = passes(base, 3)
    monkeypatch.setattr(kernels, "serve", lambda _device, _dtype: False)
    ((losses, gradients),) = passes(base, 1)
    for of_kernels in (eager, captured, replayed):
        assert apart(of_kernels[0], losses) < most
        assert apart(of_kernels[1], gradients) < most
