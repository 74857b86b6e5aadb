"""Attention of the heads of a block.

legend   n rows, t query token, s key token, b row of a decode batch, H query heads, G key-value heads, e width of a head

    o = softmax(cap(scale q k^T) + mask) v        cap(x) = c tanh(x / c), where the model caps its scores

Source: Vaswani et al. 2017 (arXiv 1706.03762); grouped queries, Ainslie et al. 2023 (arXiv 2305.13245); caps, Gemma Team 2024
(arXiv 2408.00118); sliding windows, Jiang et al. 2023, Mistral 7B (arXiv 2310.06825).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention heads of a block."""

    n: int
    n_kv: int
    """Key-value heads, each shared by n / n_kv query heads."""
    dim: int
    scale: float | None = None
    """Factor of the scores; None is 1 / sqrt(dim)."""
    window: int | None = None
    """A token attends to the last `window` tokens, itself included; None to all before it."""
    softcap: float | None = None

    def attend(
        self,
        queries: Float[Tensor, "n t H e"],
        keys: Float[Tensor, "n s G e"],
        values: Float[Tensor, "n s G e"],
        mask: Bool[Tensor, "n_ 1 t s"] | None = None,
    ) -> Float[Tensor, "n t H*e"]:
        """Return the attention output of each token, heads concatenated; a true `mask` lets it attend, without one attention is causal.

        The caller's mask already has the window.
        """
        dtype = queries.dtype
        if not queries.is_cuda:
            # The CPU's bfloat16 kernel is several times slower than its float32 kernel.
            queries, keys, values = (part.to(torch.promote_types(dtype, torch.float32)) for part in (queries, keys, values))
        q, k, v = (part.transpose(1, 2) for part in (queries, keys, values))
        if mask is None and self.window is not None and self.window < q.shape[2]:
            mask = window_mask(q.shape[2], self.window, q.device)
        if self.softcap is None:
            attended = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=self.n_kv < self.n
            )
        else:
            attended = self._attend_capped(q, k, v, window_mask(q.shape[2], q.shape[2], q.device) if mask is None else mask)
        return attended.transpose(1, 2).flatten(2).to(dtype)

    def _attend_capped(
        self, q: Float[Tensor, "n H t e"], k: Float[Tensor, "n G s e"], v: Float[Tensor, "n G s e"], mask: Bool[Tensor, "n_ 1 t s"]
    ) -> Float[Tensor, "n H t e"]:
        scores = torch.matmul(q.unflatten(1, (self.n_kv, -1)), k[:, :, None].transpose(-1, -2))
        shares = torch.softmax(self._capped(scores).masked_fill(~mask[:, :, None], float("-inf")), dim=-1).to(q.dtype)
        return torch.matmul(shares, v[:, :, None]).flatten(1, 2)

    def attend_cached(
        self,
        queries: Float[Tensor, "b H e"],
        keys: Float[Tensor, "b G s e"],
        values: Float[Tensor, "b G s e"],
        bias: Float[Tensor, "b 1 1 s"],
    ) -> Float[Tensor, "b H*e"]:
        """Return the attention output of one token per row over the cache; `bias` is -inf where it must not attend."""
        scores = torch.matmul(queries.unflatten(1, (self.n_kv, -1)), keys.transpose(2, 3))
        shares = torch.softmax(self._capped(scores).add_(bias), dim=-1).to(queries.dtype)
        return torch.matmul(shares, values).flatten(1)

    def _capped(self, scores: Tensor) -> Tensor:
        """Return the scores in at least float32, scaled and capped."""
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(self.dim**-0.5 if self.scale is None else self.scale)
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap


def window_mask(length: int, window: int, device: torch.device) -> Bool[Tensor, "1 1 t t"]:
    """Return which tokens of a row each of its tokens attends to: the last `window` ones, itself included."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return ((distance >= 0) & (distance < window))[None, None]
