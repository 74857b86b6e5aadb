"""What a base model takes of memory, told from its configuration and the shapes of its weights, which may be on the meta device."""

from typing import TYPE_CHECKING, Any

from clusterlora.models.quantised import quantisable
from clusterlora.settings import Quantisation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NF4_BLOCK, _NF4_SCALES = 64, 256
"""Weights per 8-bit scale, and scales per float32 scale of theirs."""


def weight_bytes(model: "PreTrainedModel", itemsize: int, quantisation: Quantisation = "none") -> int:
    """Return the bytes of a model's weights, of which bitsandbytes may hold the linear layers; tied ones count once."""
    n_all = sum(parameter.numel() for parameter in model.parameters())
    held: list[Any] = [] if quantisation == "none" else [module.weight for module in quantisable(model)]
    n_held = sum(weight.numel() for weight in held)
    if quantisation == "int8":
        bytes_held = n_held + 4 * sum(weight.shape[0] for weight in held)
    else:
        bytes_held = n_held // 2 + n_held // _NF4_BLOCK + 4 * n_held // _NF4_BLOCK // _NF4_SCALES
    return itemsize * (n_all - n_held) + bytes_held


def activation_bytes_per_token(config: Any, itemsize: int) -> int | None:
    """Return the activations per token that the backward pass reads, in bytes; None where the configuration does not tell the widths.

    About ten of the width and four of the feed-forward layer's in every block: 0.5 to 1.04 times that was measured on ten families.
    """
    text = config.get_text_config()
    n_blocks, width = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    if not (n_blocks and width):
        return None
    inner = next((size for name in ("intermediate_size", "ffn_dim", "n_inner") if (size := getattr(text, name, None))), 4 * width)
    return itemsize * n_blocks * (10 * width + 4 * inner)
