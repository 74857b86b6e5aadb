"""A batch of dialogues as both training backends take it.

legend   b row of the batch (one dialogue of one adapter)
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.engine.ragged import RaggedRows


@dataclass(frozen=True, slots=True)
class RowSlots:
    """The slot of each row's adapter, and the scale of the inputs of its A.

    `input_scale` is alpha / r times the row's dropout mask over the inputs of all fused LoRAs, or alpha / r alone in a single column.
    """

    slot: Int[Tensor, " b"]
    input_scale: Float[Tensor, "b feature"]


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Dialogues as the tokeniser made them, which each backend lays out itself, and the adapters of each."""

    rows: RaggedRows
    slots: RowSlots
    frozen_slots: Int[Tensor, " b"]
    """Slot of the frozen adapter under each row's trained one; 0 is none."""
    weights: Float[Tensor, " b"]
    """Weight of each row's summed negative log-likelihood in the loss."""
    prepared: Any = None
    """What the backend's `prepare` returned for the batch, whose slots may then have been without their input scale."""
