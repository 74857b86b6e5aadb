"""Gradient of each dialogue's loss with respect to an adapter, as a low-dimensional sketch: one slot per dialogue, many per pass."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from clusterlora.chat.encoder import TokenSequence
from clusterlora.engine.backends import Backend, lora_backend
from clusterlora.engine.base import BaseModel
from clusterlora.engine.batch import RowSlots, TrainingBatch
from clusterlora.engine.kinds import ADAPTER_KINDS
from clusterlora.engine.peft_folder import read_peft_tensors
from clusterlora.engine.progress import Progress
from clusterlora.engine.ragged import RaggedRows
from clusterlora.engine.stacked_lora import StackedLora
from clusterlora.recipe import Recipe

DIMENSIONS = 1024
_DIALOGUES_PER_PASS = 16


def dialogue_gradients(
    base: BaseModel, sequences: Sequence[TokenSequence], *, adapter: Path, recipe: Recipe, run_log: Progress
) -> Float[np.ndarray, "dialogue dim"]:
    """Return a sketch of the gradient of each dialogue's mean response loss with respect to B of a trained LoRA adapter.

    Each coordinate is added with a random sign to one of `DIMENSIONS` sums, which preserves inner products in expectation.
    Source: count sketch, Charikar et al. 2002; gradients as features, Xia et al. 2024, LESS (arXiv 2402.04333).
    """
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].ids))
    n_slots = min(_DIALOGUES_PER_PASS, len(order))
    lora, backend = lora_backend(base, recipe, n_slots=n_slots, rank=recipe.rank, probe=sequences[0].ids[:8])
    sketches = torch.zeros(len(sequences), DIMENSIONS)
    try:
        tensors = read_peft_tensors(adapter)
        for slot in range(len(lora.parameters)):
            lora.write(slot, lora.parameters, tensors)
        columns_of_b = lora.columns_of_b()
        rng = np.random.default_rng(0)
        bucket = torch.from_numpy(rng.integers(DIMENSIONS, size=len(columns_of_b)))
        sign = torch.from_numpy(rng.choice([-1.0, 1.0], size=len(columns_of_b))).float()
        for start in range(0, len(order), _DIALOGUES_PER_PASS):
            chunk = order[start : start + _DIALOGUES_PER_PASS]
            gradients = _gradients(lora, backend, [sequences[i] for i in chunk], recipe)[:, columns_of_b].float().cpu()
            sketches[chunk] = torch.zeros(len(chunk), DIMENSIONS).index_add_(1, bucket, gradients * sign)
            run_log.advance(len(chunk))
    finally:
        backend.close()
    return sketches.double().numpy()


def _gradients(lora: StackedLora, backend: Backend, sequences: Sequence[TokenSequence], recipe: Recipe) -> Float[torch.Tensor, "row n"]:
    """Return the gradient of each sequence's mean loss: sequence b has slot b to itself."""
    weights = torch.tensor([1 / sequence.n_response_tokens for sequence in sequences])
    slot = torch.arange(len(sequences), device=lora.parameters.device)
    scale = torch.full_like(lora.parameters[: len(sequences), :1], ADAPTER_KINDS[recipe.kind].scale(recipe))
    lora.gradients.zero_()
    backend(TrainingBatch(RaggedRows.of(sequences), RowSlots(slot, scale), torch.zeros_like(slot, device="cpu"), weights))
    return lora.gradients[: len(sequences)]
