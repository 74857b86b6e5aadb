"""Which forward and backward pass a stack of LoRA is trained with: the written-out one where there is one, else transformers' own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clusterlora.errors import BadSettings
from clusterlora.models.adapter_slots import AdapterSlots
from clusterlora.models.base import BaseModel
from clusterlora.models.decoder import decoder_of
from clusterlora.models.packing import Padding
from clusterlora.models.stacked import StackedModel, Weights, read_weights
from clusterlora.settings import Recipe
from clusterlora.training import decoder_backend, transformers_backend
from clusterlora.training.decoder_backend import DecoderBackend
from clusterlora.training.stacked_lora import Rows, StackedLora, targeted_layers
from clusterlora.training.stacked_prefix import StackedPrefix
from clusterlora.training.transformers_backend import TransformersBackend


@runtime_checkable
class Pass(Protocol):
    """One batch forward and, unless nothing is to be learned from it, backward: adds every row's gradient to its slot.

    A batch comes on the CPU, but for its `rows`.
    """

    padding: Padding
    reentrant: bool
    """Whether several threads may run batches at a time, no two of them with rows of one slot."""

    def __call__(
        self,
        ids: Int[Tensor, "b t"],
        predicts: Bool[Tensor, "b t"],
        rows: Rows,
        frozen_slots: Int[Tensor, " b"],
        weights: Float[Tensor, " b"],
        *,
        learn: bool = True,
    ) -> Float[Tensor, " b"]:
        """Return each row's weighted sum of its response tokens' negative log-likelihood, in nats."""
        ...

    def bytes_per_token(self, ids: Int[Tensor, "1 t"]) -> float:
        """Run one row forward and return how much is kept for the way back, for each of its tokens."""
        ...

    def close(self) -> None:
        """Give the model back as it was."""
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
) -> tuple[StackedLora, Pass]:
    """Return room for so many adapters on a recipe's target modules, and the pass that trains them.

    Args:
        rank: the largest rank of any of them.
        probe: token ids to run once where it has to be seen which layers read the same tensor.
        frozen_adapters: PEFT folders of frozen adapters; they are the slots 1, 2, ... that a batch may name, 0 is none.

    Raises:
        BadSettings: the base has no plain Linear layers of these names, or cannot be run with checkpoints.
    """
    layers = targeted_layers(base.model, recipe.target_modules)
    frozen = [read_weights(folder) for folder in frozen_adapters]
    decoder = decoder_of(base.model)
    if decoder is not None and layers.keys() <= {name for site in decoder.sites for name in site.names}:
        lora = StackedLora(base.model, decoder_backend.places(decoder, frozenset(layers)), n_slots=n_slots, rank=rank)
        return lora, DecoderBackend(decoder, lora, AdapterSlots(decoder, frozen) if frozen else None, checkpointing=checkpointing)
    if checkpointing:
        raise BadSettings(
            f"runtime.gradient_checkpointing=true needs a Llama or Qwen2 base, and {base.name} is a {type(base.model).__name__}; "
            "set it to false and lower runtime.micro_batch"
        )
    ids = torch.tensor([list(probe)], device=base.model.device)
    lora = StackedLora(base.model, transformers_backend.places(base.model, layers, ids), n_slots=n_slots, rank=rank)
    return lora, TransformersBackend(base.model, lora, _hooked(base, frozen))


def prefix_backend(base: BaseModel, *, n_slots: int, n_virtual: int) -> tuple[StackedPrefix, Pass]:
    """Return room for so many prefixes of `n_virtual` tokens, and the pass that trains them."""
    stack = StackedPrefix(base.model, n_slots=n_slots, n_virtual=n_virtual)
    return stack, TransformersBackend(base.model, stack, None)


def _hooked(base: BaseModel, frozen: Sequence[Weights]) -> StackedModel | None:
    if not frozen:
        return None
    stacked = StackedModel(base.model)
    stacked.load(frozen)
    return stacked
