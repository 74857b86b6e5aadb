"""Attention in training over rows of different lengths without padding, by PyTorch's flash attention on a GPU.

legend   b row, N tokens of all rows, M tokens whose output is needed, H query heads, G key-value heads, e width of a head

Source: Dao 2023, FlashAttention-2 (arXiv 2307.08691).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.engine.attention import Heads
from clusterlora.engine.cuda_graphs import bucket_size
from clusterlora.engine.packing import Packing

_WIDEST = 256
"""The widest head that flash attention takes; widths are multiples of `_WIDTHS`."""
_WIDTHS = 8
_NOT_EVERYWHERE = range(193, 225)
"""Widths whose backward pass smaller GPUs cannot hold."""
_OLDEST_GPU = (8, 0)
_LEAST_BOUND = 64


@dataclass(frozen=True, slots=True)
class RowStarts:
    """Where the rows of a packed batch begin: the first token of each and the number of all, and a bound on a row's length."""

    starts: Int[Tensor, " row"]
    longest: int


def row_starts(packing: Packing) -> RowStarts:
    """Return the starts of rows without padding, in a number that depends on few sizes of the batch; those left over are empty.

    What fills the batch is rows as well, which nothing reads.
    """
    longest, n = max(_LEAST_BOUND, 1 << (packing.longest - 1).bit_length()), len(packing.row)
    ends = packing.widths.cumsum(0)
    filling = torch.arange(int(ends[-1]), n, longest)[1:]
    # Filling up adds a quarter at most, and a row of it may begin anywhere.
    starts = torch.full((1 + bucket_size(len(ends)) + 2 + n // (4 * longest),), n, dtype=torch.int32)
    starts[0] = 0
    starts[1 : 1 + len(ends)] = ends
    starts[1 + len(ends) : 1 + len(ends) + len(filling)] = filling
    return RowStarts(starts, longest)


def fits(heads: Heads, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether flash attention computes these heads."""
    return (
        device.type == "cuda"
        and dtype == torch.bfloat16
        and heads.softcap is None
        and heads.dim % _WIDTHS == 0
        and heads.dim <= _WIDEST
        and heads.dim not in _NOT_EVERYWHERE
        and torch.cuda.get_device_capability(device) >= _OLDEST_GPU
    )


def attend(
    heads: Heads, rows: RowStarts, q: Float[Tensor, "N H e"], k: Float[Tensor, "N G e"], v: Float[Tensor, "N G e"]
) -> tuple[Float[Tensor, "N H e"], tuple[Tensor, ...]]:
    """Return the attention output of every token over its row's tokens up to itself, and what `backward` takes."""
    out, logsumexp, rng_state, unused, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, rows.starts, rows.starts, rows.longest, rows.longest, 0.0, True, False, **_options(heads)
    )
    return out, (q, k, v, out, logsumexp, rng_state, unused)


def backward(
    heads: Heads, rows: RowStarts, saved: tuple[Tensor, ...], do: Float[Tensor, "N H e"]
) -> tuple[Float[Tensor, "N H e"], Float[Tensor, "N G e"], Float[Tensor, "N G e"]]:
    """Return the gradients of q, k and v."""
    q, k, v, out, logsumexp, rng_state, unused = saved
    return torch.ops.aten._flash_attention_backward(
        do, q, k, v, out, logsumexp, rows.starts, rows.starts, rows.longest, rows.longest, 0.0, True, rng_state, unused, **_options(heads)
    )


def _options(heads: Heads) -> dict[str, Any]:
    options: dict[str, Any] = {"scale": heads.dim**-0.5 if heads.scale is None else heads.scale}
    return options if heads.window is None else options | {"window_size_left": heads.window - 1, "window_size_right": 0}
