"""The backend that trains stacked adapters: the written-out decoder where the architecture has one, else the transformers model itself."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.engine import decoder_backend, transformers_backend
from clusterlora.engine.adapter_slots import AdapterSlots
from clusterlora.engine.base import BaseModel
from clusterlora.engine.batch import TrainingBatch
from clusterlora.engine.decoder_backend import DecoderBackend
from clusterlora.engine.families import FAMILIES, decoder_of
from clusterlora.engine.families.decoder import Decoder
from clusterlora.engine.packing import Padding
from clusterlora.engine.placement import refuse_spread_prefix
from clusterlora.engine.stacked import StackedModel, Weights, read_adapter
from clusterlora.engine.stacked_lora import StackedLora, targeted_layers
from clusterlora.engine.stacked_prefix import StackedPrefix
from clusterlora.engine.transformers_backend import TransformersBackend
from clusterlora.errors import BadSettings
from clusterlora.recipe import Recipe

log = logging.getLogger(__name__)


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

    def prepare(self, batch: TrainingBatch, *, backward: bool) -> Any:
        """Return what can be computed of a batch while another one is, whatever its input scale; see `TrainingBatch.prepared`."""
        ...

    def bytes_per_token(self, ids: Int[Tensor, " t"]) -> float:
        """Return the activation bytes per token that the backward pass keeps, measured on one row."""
        ...

    def model_restored(self) -> AbstractContextManager[None]:
        """Return a context in which the model is as it was before, and no batch may run."""
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
    if decoder is not None and not log_outside_blocks(decoder, layers, "training"):
        lora = StackedLora(base.model, decoder_backend.fused_specs(decoder, frozenset(layers)), n_slots=n_slots, rank=rank)
        return lora, DecoderBackend(decoder, lora, AdapterSlots(decoder, frozen) if frozen else None, checkpointing=checkpointing)
    if checkpointing:
        raise BadSettings(
            "checkpointing (runtime.gradient_checkpointing in a study) needs adapters inside the blocks of one of "
            f"{', '.join(FAMILIES)}, and {base.name} is a {type(base.model).__name__}; turn it off and lower the micro-batch"
        )
    ids = torch.tensor([list(probe)], device=base.model.device)
    lora = StackedLora(base.model, transformers_backend.fused_specs(base.model, layers, ids), n_slots=n_slots, rank=rank)
    return lora, TransformersBackend(base, lora, _stacked_model(base, frozen))


def prefix_backend(base: BaseModel, *, n_slots: int, n_virtual: int) -> tuple[StackedPrefix, Backend]:
    """Return slots for `n_slots` prefixes of `n_virtual` tokens, and the backend that trains them."""
    refuse_spread_prefix(base.model)
    stack = StackedPrefix(base.model, n_slots=n_slots, n_virtual=n_virtual)
    return stack, TransformersBackend(base, stack, None)


def log_outside_blocks(decoder: Decoder, layer_names: Iterable[str], doing: str) -> bool:
    """Return whether a layer lies outside the blocks that a family writes out; one line in the log says which, and what follows."""
    outside = sorted({name.rpartition(".")[2] for name in set(layer_names) - decoder.layer_names})
    if outside:
        log.warning(
            "%s through transformers, several times slower: adapters on %s lie outside the blocks that %s writes out",
            doing,
            " and ".join(outside),
            type(decoder).__name__,
        )
    return bool(outside)


def _stacked_model(base: BaseModel, frozen: Sequence[Weights]) -> StackedModel | None:
    if not frozen:
        return None
    stacked = StackedModel(base.model)
    stacked.load(frozen)
    return stacked
