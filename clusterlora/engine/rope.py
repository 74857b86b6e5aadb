"""Rotary position embeddings.

legend   N tokens, h heads, e width of a head, w its rotated part (e, or less), R tables

Source: Su et al. 2021 (arXiv 2104.09864).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.engine import kernels

CosSin = tuple[Float[Tensor, "n w"], Float[Tensor, "n w"]]
RopeTable = Callable[[Int[Tensor, " n"]], CosSin]
"""From positions to the cosine and sine of their angles; the second half of the width repeats the first."""


class RopeTables:
    """Cosine and signed sine of every position, in one table per kind of layer; a model without rotary embeddings has none."""

    def __init__(self, tables: tuple[RopeTable, ...], device: torch.device) -> None:
        """Compute the first positions."""
        self._functions = tables
        self._device = device
        self._former: list[tuple[Tensor, Tensor]] = []
        """Smaller tables of before: CUDA graphs still read them."""
        self._cos, self._sin = self._compute(256)

    def cos_sin(self, positions: Int[Tensor, " N"], n_positions: int) -> tuple[Float[Tensor, "R N w"], Float[Tensor, "R N w"]]:
        """Return the cosine and the signed sine of tokens at these positions, as `apply_rope` takes them.

        Args:
            n_positions: an upper bound, larger than every position; reading it off `positions` would synchronise a GPU.
        """
        cos, sin = self._cos, self._sin
        if n_positions > cos.shape[1]:
            # A race between threads is harmless: each uses the tables it computed.
            self._former.append((cos, sin))
            cos, sin = self._cos, self._sin = self._compute(max(n_positions, 2 * cos.shape[1]))
        return cos[:, positions], sin[:, positions]

    def _compute(self, n: int) -> tuple[Tensor, Tensor]:
        if not self._functions:
            none = torch.zeros(0, n, 0, device=self._device)
            return none, none
        cos, sin = (
            torch.stack(part) for part in zip(*(table(torch.arange(n, device=self._device)) for table in self._functions), strict=True)
        )
        sign = torch.ones_like(sin[0, 0])
        sign[: sin.shape[-1] // 2] = -1
        return cos.contiguous(), sin * sign


def apply_rope(x: Float[Tensor, "N h e"], cos: Float[Tensor, "N w"], sin: Float[Tensor, "N w"]) -> Float[Tensor, "N h e"]:
    """Return heads rotated by the angles of their positions, given as cosine and signed sine; with -sin the inverse, as backward needs."""
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat([apply_rope(x[..., :width], cos, sin), x[..., width:]], dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.addcmul(x * cos, x.roll(width // 2, -1), sin)


def rotated(
    q: Float[Tensor, "N H e"], k: Float[Tensor, "N G e"], cos: Float[Tensor, "N w"], sin: Float[Tensor, "N w"]
) -> tuple[Float[Tensor, "N H e"], Float[Tensor, "N G e"]]:
    """Return queries and keys rotated as `apply_rope` does; kernels overwrite both, in one launch where keys follow queries."""
    if not kernels.serve(q.device, q.dtype):
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin)
    from clusterlora.engine.kernels.rope import rope_

    n_heads = q.shape[1] + k.shape[1]
    if (
        q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
        and q.stride() == k.stride()
        and k.data_ptr() == q.data_ptr() + q.shape[1] * q.stride(1) * q.itemsize
    ):
        rope_(q.as_strided((len(q), n_heads, q.shape[2]), q.stride()), cos, sin)
    else:
        rope_(q, cos, sin)
        rope_(k, cos, sin)
    return q, k
