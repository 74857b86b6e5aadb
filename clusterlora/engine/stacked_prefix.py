"""Prefixes for K adapters at once: keys and values of virtual tokens that precede every sequence in each layer's cache.

The interface is that of `StackedLora`, so one engine trains both: parameters and gradients of slot k are row k of two matrices [K, n].
Source: Li & Liang 2021, prefix tuning (arXiv 2101.00190), without its reparametrisation, like PEFT.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from clusterlora.engine.batch import RowSlots
from clusterlora.engine.stacked import fill_cache

TENSOR = "prompt_embeddings"
"""PEFT's name of a prefix tensor [token, 2 * layers * heads * dim]."""


class StackedPrefix:
    """K slots of prefixes on a frozen model."""

    n_features = 0
    """Inputs that dropout masks: none."""

    def __init__(self, model: PreTrainedModel, *, n_slots: int, n_virtual: int) -> None:
        """Allocate zeros for prefixes of `n_virtual` tokens each."""
        n_layers, n_heads, head_dim = cache_shape(model)
        self._model = model
        self._shape = (n_virtual, 2 * n_layers, n_heads, head_dim)
        dtype = torch.promote_types(model.dtype, torch.float32)
        n = n_virtual * 2 * n_layers * n_heads * head_dim
        self.parameters = torch.zeros(n_slots, n, device=model.device, dtype=dtype)
        self.gradients = torch.zeros_like(self.parameters)

    def initial(self, *, rank: int, seed: int) -> dict[str, Tensor]:  # noqa: ARG002  (zeros need no seed)
        """Return the initial tensor of a prefix of `rank` virtual tokens: zeros."""
        return {TENSOR: torch.zeros(rank, self.parameters.shape[1] // self._shape[0])}

    @contextmanager
    def rows(self, rows: RowSlots) -> Generator[None]:
        """Prepend the prefix of slot `rows.slot[b]` to row b of every batch inside the block."""
        prefixes = self.parameters.index_select(0, rows.slot).requires_grad_()
        hook = self._model.register_forward_pre_hook(self._with_cache(prefixes), with_kwargs=True)

        def collect(gradient: Tensor) -> None:
            self.gradients.index_add_(0, rows.slot, gradient)

        prefixes.register_hook(collect)
        try:
            yield
        finally:
            hook.remove()

    def _with_cache(self, prefixes: Float[Tensor, "row n"]) -> Any:
        def hook(_model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            cache = DynamicCache(config=self._model.config)
            fill_cache(cache, prefixes.to(self._model.dtype).view(-1, *self._shape))
            return args, {**kwargs, "past_key_values": cache}

        return hook

    def read(self, slot: int, matrix: Float[Tensor, "k n"], *, rank: int) -> dict[str, Tensor]:
        """Return a slot's row of a [K, n] matrix under PEFT's name; `rank` is the number of virtual tokens."""
        return {TENSOR: matrix[slot].view(rank, -1).clone()}

    def write(self, slot: int, matrix: Float[Tensor, "k n"], tensors: Mapping[str, Tensor]) -> None:
        """Overwrite a slot's row of a [K, n] matrix."""
        matrix[slot] = tensors[TENSOR].reshape(-1).to(matrix)


def cache_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Return (layers, key-value heads, dimension of a head) of a model's cache."""
    config: Any = model.config
    n_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or n_heads, head_dim
