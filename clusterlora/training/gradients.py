"""How every dialogue would change an adapter: gradients of many dialogues in one pass, each in a slot of its own, sketched."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from clusterlora.data.prompts import TokenSequence
from clusterlora.models.base import BaseModel
from clusterlora.ports import RunLog
from clusterlora.settings import Recipe
from clusterlora.training.backends import Pass, lora_backend
from clusterlora.training.job import pad_rows
from clusterlora.training.peft_folder import read_peft_tensors
from clusterlora.training.stacked_lora import Rows, StackedLora

DIMENSIONS = 1024
_AT_ONCE = 16


def dialogue_gradients(
    base: BaseModel, sequences: Sequence[TokenSequence], *, adapter: Path, recipe: Recipe, run_log: RunLog
) -> Float[np.ndarray, "dialogue dim"]:
    """Return a sketch of the gradient of each dialogue's mean response loss with respect to B at a trained LoRA adapter.

    The sketch adds every coordinate, with a random sign, to one of `DIMENSIONS` sums: inner products keep their value in expectation.
    Source: count sketch, Charikar et al. 2002; gradients as features, Xia et al. 2024, LESS (arXiv 2402.04333).
    """
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].ids))
    n_slots = min(_AT_ONCE, len(order))
    lora, through = lora_backend(base, recipe, n_slots=n_slots, rank=recipe.rank, probe=sequences[0].ids[:8])
    sketches = torch.zeros(len(sequences), DIMENSIONS)
    try:
        tensors = read_peft_tensors(adapter)
        for slot in range(len(lora.parameters)):
            lora.write(slot, lora.parameters, tensors)
        of_b = lora.columns_of_b()
        draw = np.random.default_rng(0)
        sum_of = torch.from_numpy(draw.integers(DIMENSIONS, size=len(of_b)))
        sign = torch.from_numpy(draw.choice([-1.0, 1.0], size=len(of_b))).float()
        for start in range(0, len(order), _AT_ONCE):
            chunk = order[start : start + _AT_ONCE]
            gradients = _gradients(base, lora, through, [sequences[i] for i in chunk], recipe)[:, of_b].float().cpu()
            sketches[chunk] = torch.zeros(len(chunk), DIMENSIONS).index_add_(1, sum_of, gradients * sign)
            run_log.advance(len(chunk))
    finally:
        through.close()
    return sketches.double().numpy()


def _gradients(
    base: BaseModel, lora: StackedLora, through: Pass, rows: Sequence[TokenSequence], recipe: Recipe
) -> Float[torch.Tensor, "row n"]:
    """Return the gradient of each row's mean loss: row b is alone in slot b."""
    device = base.model.device
    ids, predicts = (part.to(device) for part in pad_rows(rows, pad_id=base.pad_id))
    slot = torch.arange(len(rows), device=device)
    scale = torch.full((len(rows), 1), recipe.alpha / recipe.rank, device=device, dtype=lora.parameters.dtype)
    lora.gradients.zero_()
    through(ids, predicts, Rows(slot, scale), torch.zeros_like(slot), 1 / predicts.sum(1))
    return lora.gradients[: len(rows)]
