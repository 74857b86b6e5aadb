"""One frozen base model with a different composition of adapters in every row of a batch, as hooks on a transformers model.

Every targeted linear layer computes, for batch row b with slot k(b),

    y_b = W x_b + B_k (A_k x_b)        A: [slot, rank, d_in]   B: [slot, d_out, rank]

A composition of several adapters is one slot: factors are concatenated along the rank, and each adapter's alpha / r and weight are
folded into its B, so sum_i w_i s_i B_i A_i is exact. Ranks are padded with zeros. Slot 0 is the base model. A slot may also have a
prefix: keys and values that precede every sequence in each layer's cache.
Source of the batched form: Sheng et al. 2023, S-LoRA (arXiv 2311.03285); Chen et al. 2023, Punica (arXiv 2310.18547).
"""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DynamicCache

from clusterlora.errors import BadData, BadSettings, printable
from clusterlora.models.linear_layers import LinearLayer, linear_layer

Factors = Mapping[str, tuple[Float[Tensor, "_rank _d_in"], Float[Tensor, "_d_out _rank"]]]
"""(A, scaled B) by the name of the linear layer; the update of its weight is B @ A."""

Prefix = Float[Tensor, "token layer_kv head dim"]
"""Keys (even) and values (odd) of each layer for the virtual tokens before a sequence; keys are not rotated."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What one slot adds to the base model."""

    factors: Factors = field(default_factory=dict[str, "tuple[Tensor, Tensor]"])
    prefix: Prefix | None = None
    peft_folder: Path | None = None
    """An adapter that only PEFT can add, alone."""


def prefix_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Prefix:
    """Return the keys and values of an adapter of prefix tuning, as PEFT describes and saves it."""
    flat = tensors["prompt_embeddings"]
    n_heads = config["num_attention_heads"]
    return flat.view(len(flat), 2 * config["num_layers"], n_heads, config["token_dim"] // n_heads)


def read_adapter(folder: Path) -> Factors:
    """Return the factors of a PEFT LoRA folder; see `factors_of`."""
    config = json.loads((folder / "adapter_config.json").read_bytes())
    return factors_of(config, load_file(folder / "adapter_model.safetensors"), name=folder.name)


def factors_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, name: str) -> Factors:
    """Return the factors of a LoRA as PEFT describes and saves it, each layer's alpha / r folded into its B.

    Layers may differ in rank and alpha. `name` is the adapter's in errors.

    Raises:
        BadData: not a sum of low-rank updates, or a layer with only one of A and B.
    """
    extras = [extra for extra in ("use_dora", "modules_to_save", "lora_bias") if config.get(extra)]
    if config.get("peft_type") != "LORA" or extras:
        raise BadData(
            f"adapter {name} is {config.get('peft_type')} with {extras or 'no extras'}; "
            "only LoRA without them can be stacked, weighted or merged"
        )
    tensors = {one.removeprefix("base_model.model."): tensor for one, tensor in tensors.items()}
    if others := sorted(one for one in tensors if ".lora_embedding_" in one or ".experts." in one):
        raise BadData(
            f"adapter {name} adapts an embedding or experts ({printable(others[0])}); "
            "only LoRA on linear layers can be stacked, weighted or merged"
        )
    if others := sorted(one for one in tensors if not one.endswith((".lora_A.weight", ".lora_B.weight"))):
        raise BadData(
            f"adapter {name} holds {printable(others[0])}, which is no factor of a linear layer as PEFT names it; save it again with PEFT"
        )
    if bad := sorted(one for one, tensor in tensors.items() if not tensor.numel() or not tensor.isfinite().all()):
        raise BadData(f"adapter {name} holds {printable(bad[0])}, which is empty or not finite; train it again, or save it again with PEFT")
    if not tensors:
        raise BadData(f"adapter {name} holds no tensors; save it again with PEFT")
    layers = sorted(one.removesuffix(".lora_A.weight") for one in tensors if one.endswith(".lora_A.weight"))
    try:
        pairs = {one: (tensors[f"{one}.lora_A.weight"], tensors[f"{one}.lora_B.weight"]) for one in layers}
    except KeyError as missing:
        raise BadData(f"adapter {name} lacks tensor {missing}; train it again") from missing
    dtype = torch.promote_types(torch.float32, next(iter(tensors.values())).dtype)
    return {layer: (a.to(dtype), _scale(config, layer, rank=len(a)) * b.to(dtype)) for layer, (a, b) in pairs.items()}


def _scale(config: Mapping[str, Any], layer: str, *, rank: int) -> float:
    """Return alpha / r of a layer, or alpha / sqrt(r), by PEFT's settings; a pattern of layers may have an alpha of its own."""
    by_pattern = config.get("alpha_pattern") or {}
    alpha = by_pattern.get(get_pattern_key(list(by_pattern), layer), config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


class StackedModel:
    """Adds slots of adapters to a causal language model without changing its weights.

    `load` fills the slots, `rows` sets each row's slot during a forward pass, `close` restores the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._row_slots: Int[Tensor, " row"] | None = None
        self._n_tokens = 0
        self._removed = False
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._prefix_by_slot: dict[int, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def load(self, weights: Sequence[Weights]) -> None:
        """Load these weights into the slots 1..n; slot 0 is the base model.

        Raises:
            BadData: an adapter names a layer that the base model does not have, or has in another shape.
        """
        self.close()
        slots = [one.factors for one in weights]
        like = next(self.model.parameters())
        self._prefix_by_slot = {slot: one.prefix.to(like) for slot, one in enumerate(weights, start=1) if one.prefix is not None}
        self._hooks.append(self.model.get_input_embeddings().register_forward_pre_hook(self._count_tokens))  # pyrefly: ignore[not-callable]
        for name in sorted({name for factors in slots for name in factors}):
            layer = self._linear(name)
            rank = max(factors[name][0].shape[0] for factors in slots if name in factors)
            dtype = next(factors[name][0].dtype for factors in slots if name in factors)
            device = next(layer.module.parameters()).device
            down = torch.zeros(len(slots) + 1, rank, layer.d_in, device=device, dtype=dtype)
            up = torch.zeros(len(slots) + 1, layer.d_out, rank, device=device, dtype=dtype)
            for slot, factors in enumerate(slots, start=1):
                if name in factors:
                    a, b = factors[name]
                    if a.shape[1] != layer.d_in or b.shape[0] != layer.d_out:
                        raise BadData(
                            f"adapter layer {name} maps {a.shape[1]} to {b.shape[0]}; the base maps {layer.d_in} to {layer.d_out}; "
                            "it belongs to another base"
                        )
                    down[slot, : a.shape[0]] = a
                    up[slot, :, : b.shape[1]] = b
            self._factors[name] = (down, up)
            self._hooks.append(layer.module.register_forward_hook(self._add_update(name)))

    @contextmanager
    def rows(self, slots: Int[Tensor, " row"]) -> Generator[None]:
        """Use slot `slots[b]` for row b of every batch inside the block."""
        before, self._row_slots = self._row_slots, slots
        try:
            yield
        finally:
            self._row_slots = before

    @contextmanager
    def removed(self) -> Generator[None]:
        """Let the model be the base alone inside the block."""
        self._removed = True
        try:
            yield
        finally:
            self._removed = False

    @property
    def has_head(self) -> bool:
        """Whether any slot changes the output layer."""
        head = self.model.get_output_embeddings()  # pyrefly: ignore[not-callable]
        return any(self.model.get_submodule(name) is head for name in self._factors)

    def prefix_length(self, slot: int) -> int:
        """Return the number of virtual tokens of a slot's prefix."""
        return len(self._prefix_by_slot[slot]) if slot in self._prefix_by_slot else 0

    def cache(self, slots: Int[Tensor, " row"]) -> DynamicCache:
        """Return a cache that holds the prefixes of these slots, which must be equally long."""
        cache = DynamicCache(config=self.model.config)  # pyrefly: ignore[bad-argument-type]
        if prefixes := [self._prefix_by_slot[slot] for slot in slots.tolist() if slot in self._prefix_by_slot]:
            fill_cache(cache, torch.stack(prefixes))
        return cache

    def close(self) -> None:
        """Remove all slots and hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._factors.clear()
        self._prefix_by_slot.clear()

    def _linear(self, name: str) -> LinearLayer:
        try:
            module = self.model.get_submodule(name)
        except AttributeError as missing:
            raise BadData(f"the base model has no layer {name}; the adapter belongs to another base") from missing
        layer = linear_layer(module)
        if layer is None:
            raise BadData(f"layer {name} is a {type(module).__name__}, not a Linear; it cannot carry stacked LoRA")
        return layer

    def _count_tokens(self, _embedding: nn.Module, inputs: tuple[Int[Tensor, "row token"]]) -> None:
        self._n_tokens = inputs[0].shape[1]

    def _add_update(self, name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        def hook(_layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            if self._removed:
                return output
            assert self._row_slots is not None, "a stacked model was run outside `rows`"
            refuse_routed(name, inputs[0], n_rows=len(self._row_slots), n_tokens=self._n_tokens)
            down, up = self._factors[name]
            slots, x = self._row_slots.to(down.device), inputs[0].to(down.device)
            down, up = down.index_select(0, slots), up.index_select(0, slots)
            by_row = x.reshape(len(slots), -1, x.shape[-1])
            hidden = torch.bmm(by_row.to(down.dtype), down.transpose(1, 2))
            return output + torch.bmm(hidden, up.transpose(1, 2)).to(output.dtype).view(output.shape)

        return hook


def refuse_routed(name: str, x: Float[Tensor, "*tokens d_in"], *, n_rows: int, n_tokens: int) -> None:
    """Check that a layer reads rows, or all tokens of all rows in one matrix, but not those that a router chose. Raises BadSettings."""
    if x.ndim == 2 and len(x) != n_rows * n_tokens:
        raise BadSettings(
            f"layer {name} reads {len(x)} of {n_rows * n_tokens} tokens, as an expert does, and cannot have an adapter; "
            "take it out of recipe.target_modules"
        )


def fill_cache(cache: DynamicCache, prefixes: Float[Tensor, "row token layer_kv head dim"]) -> None:
    """Append each row's prefix to every layer's keys and values."""
    by_layer = prefixes.permute(2, 0, 3, 1, 4)
    for layer in range(len(by_layer) // 2):
        cache.update(by_layer[2 * layer], by_layer[2 * layer + 1], layer)


@contextmanager
def logits_only_at(model: nn.Module, positions: Tensor, *, head_is_stacked: bool = False) -> Generator[None]:
    """Make the model's logits [n_selected, vocabulary] inside the block: those where the [batch, token] mask `positions` is true.

    The vocabulary projection is the largest product of a small model, and only the logits of predicting tokens are used.

    Args:
        head_is_stacked: the projection has adapters that differ from row to row; they are computed for all tokens of a row.
    """
    head = model.get_output_embeddings()  # pyrefly: ignore[not-callable]
    if head_is_stacked:
        hook = head.register_forward_hook(lambda _module, _inputs, logits: logits[positions.to(logits.device)])
    else:
        hook = head.register_forward_pre_hook(lambda _module, inputs: (inputs[0][positions.to(inputs[0].device)],))
    try:
        yield
    finally:
        hook.remove()
