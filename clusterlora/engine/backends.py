"""The backend that trains stacked adapters: the written-out decoder where the architecture has one, else the transformers model itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.engine import decoder_backend, transformers_backend
from clusterlora.engine.adapter_slots import AdapterSlots
from clusterlora.engine.base import BaseModel
from clusterlora.engine.batch import TrainingBatch
from clusterlora.engine.decoder_backend import DecoderBackend
from clusterlora.engine.families import FAMILIES, decoder_of
from clusterlora.engine.packing import Padding
from clusterlora.engine.stacked import StackedModel, Weights, read_adapter
from clusterlora.engine.stacked_lora import StackedLora, targeted_layers
from clusterlora.engine.stacked_prefix import StackedPrefix
from clusterlora.engine.transformers_backend import TransformersBackend
from clusterlora.errors import BadSettings
from clusterlora.recipe import Recipe


@runtime_checkable
class Backend(Protocol):
    """Runs a batch forward and, by default, backward."""

    padding: Padding
    reentrant: bool
    """Whether threads may run batches at the same time, provided that no two of them have rows of the same slot."""

    def __call__(self, batch: TrainingBatch, *, backward: bool = True) -> Float[Tensor, " b"]:
        """Return each row's weighted sum of its response tokens' negative log-likelihood, in nats.

        With `backward`, add its gradient to that of the row's slot.
        """
        ...

    def bytes_per_token(self, ids: Int[Tensor, "1 t"]) -> float:
        """Return the activation bytes per token that the backward pass keeps, measured on one row."""
        ...

    def close(self) -> None:
        """Restore the model."""
        ...


def lora_backend(
    base: BaseModel,
    recipe: Recipe,
    *,
    n_slots: int,
    rank: int,
    probe: Sequence[int],
    frozen_adapters: Sequence[Path] = (),
    checkpointing: bool = False,
) -> tuple[StackedLora, Backend]:
    """Return slots for `n_slots` adapters on a recipe's target modules, and the backend that trains them.

    Args:
        rank: the largest rank of any of them.
        probe: token ids that the transformers backend runs once, to see which layers read the same tensor.
        frozen_adapters: PEFT folders, which get the frozen slots 1, 2, ...; 0 is none.

    Raises:
        BadSettings: the base has no plain Linear layers of these names, or does not support checkpointing.
    """
    layers = targeted_layers(base.model, recipe.target_modules)
    frozen = [Weights(read_adapter(folder)) for folder in frozen_adapters]
    decoder = decoder_of(base.model)
    if decoder is not None and layers.keys() <= {name for linear in decoder.fused_linears for name in linear.names}:
        lora = StackedLora(base.model, decoder_backend.fused_specs(decoder, frozenset(layers)), n_slots=n_slots, rank=rank)
        return lora, DecoderBackend(decoder, lora, AdapterSlots(decoder, frozen) if frozen else None, checkpointing=checkpointing)
    if checkpointing:
        raise BadSettings(
            f"runtime.gradient_checkpointing=true needs a base that is one of {', '.join(FAMILIES)}, and {base.name} is a "
            f"{type(base.model).__name__}; set it to false and lower runtime.micro_batch"
        )
    ids = torch.tensor([list(probe)], device=base.model.device)
    lora = StackedLora(base.model, transformers_backend.fused_specs(base.model, layers, ids), n_slots=n_slots, rank=rank)
    return lora, TransformersBackend(base.model, lora, _stacked_model(base, frozen))


def prefix_backend(base: BaseModel, *, n_slots: int, n_virtual: int) -> tuple[StackedPrefix, Backend]:
    """Return slots for `n_slots` prefixes of `n_virtual` tokens, and the backend that trains them."""
    stack = StackedPrefix(base.model, n_slots=n_slots, n_virtual=n_virtual)
    return stack, TransformersBackend(base.model, stack, None)


def _stacked_model(base: BaseModel, frozen: Sequence[Weights]) -> StackedModel | None:
    if not frozen:
        return None
    stacked = StackedModel(base.model)
    stacked.load(frozen)
    return stacked
