"""How much memory training takes, told before the weights of its base are loaded.

The engine takes what there is: slots up to a share of the free memory, chunks of a pass down to one dialogue. So the estimate is of the
least that works with these settings, and of the adapters at once that are affordable beside it.
"""

from dataclasses import dataclass
from typing import Any

from clusterlora.engine.families import FAMILIES
from clusterlora.engine.families.decoder import LOGITS_PER_CHUNK
from clusterlora.engine.kinds import ADAPTER_KINDS
from clusterlora.engine.memory import CHUNK_BYTES
from clusterlora.engine.training_slots import MAX_SLOTS, SLOT_BYTES_PER_PARAMETER, affordable_slots
from clusterlora.errors import BadSettings
from clusterlora.models.base import BaseModel
from clusterlora.models.footprint import activation_bytes_per_token, weight_bytes
from clusterlora.models.linear_layers import linear_layer
from clusterlora.recipe import Recipe

_LOGITS_KEPT = 3
"""Rows of float32 logits that a token's loss takes."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of the frozen base, of an adapter's slot, and of a pass of `n_tokens`; adapters that are affordable at once."""

    base: int
    adapter: int
    n_adapters: int
    n_tokens: int
    one_pass: int

    @property
    def total(self) -> int:
        """Bytes of all of it, with one adapter."""
        return self.base + self.adapter + self.one_pass


def estimate_memory(
    base: BaseModel,
    recipe: Recipe,
    *,
    itemsize: int,
    quantisation: Any,
    micro_batch: int,
    max_length: int,
    device_type: str,
    n_workers: int,
    free: int,
) -> MemoryEstimate:
    """Return what training adapters of a recipe takes.

    Args:
        base: may be on the meta device.
        itemsize: bytes of a number of the base's dtype.
        n_workers: threads that run chunks of a pass side by side; one on a GPU.
        free: bytes that can be allocated.

    Raises:
        BadSettings: the base's configuration does not tell its widths, or it has none of the target modules.
    """
    model: Any = base.model
    per_token = activation_bytes_per_token(model.config, itemsize)
    if per_token is None:
        raise BadSettings(f"base model {base.name} does not tell its widths (config.json); its memory cannot be estimated")
    head = model.get_output_embeddings()
    layers = [layer for module in model.modules() if module is not head and (layer := linear_layer(module)) is not None]
    widest = max(layer.d_out for layer in layers)
    budget = CHUNK_BYTES[device_type] // (2 * widest * itemsize) * micro_batch // recipe.batch_size
    n_tokens = max(budget, n_workers * max_length)
    n_vocabulary = head.weight.shape[0]
    n_scored = n_tokens
    if type(model).__name__ in FAMILIES:
        n_scored = min(n_scored, n_workers * max(1, LOGITS_PER_CHUNK[device_type] // n_vocabulary))
    # A quantised layer is dequantised for one product, by each thread.
    dense = 0 if quantisation == "none" else n_workers * itemsize * max(layer.d_in * layer.d_out for layer in layers)
    weights = weight_bytes(model, itemsize, quantisation)
    kind = ADAPTER_KINDS[recipe.kind]
    stacked = kind.why_not_stacked(base, recipe) is None
    adapter = SLOT_BYTES_PER_PARAMETER * (kind if stacked else ADAPTER_KINDS["lora"]).n_parameters(base, recipe)
    n_adapters = affordable_slots(MAX_SLOTS[device_type], adapter, max(0, free - weights)) if stacked else 1
    return MemoryEstimate(weights, adapter, n_adapters, n_tokens, n_tokens * per_token + n_scored * n_vocabulary * 4 * _LOGITS_KEPT + dense)
