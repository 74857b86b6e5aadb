"""Low-rank updates of fused linear layers, for a batch whose rows have factors of their own.

legend   b row, t token, N tokens of all rows, n rows of a segment, d_in width of x, r rank of a layer, R of all layers, D a layer's outputs

Row b adds to the output of each layer, whose frozen weight is W, and backward, given dy_b,

    h_b = A_b x_b^T           y_b = x_b W^T + h_b^T B_b^T
    u_b = B_b^T dy_b^T        dx_b = dy_b W + u_b^T A_b
    dA_b = u_b x_b            dB_b^T = h_b dy_b

The A of all layers are stacked, so x is read once. B is stored transposed, so that every product has tokens or outputs as its columns and
ranks as its rows: CPU kernels are two to eight times slower on products with few columns.
Source: Hu et al. 2021, LoRA (arXiv 2106.09685).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.engine.packing import Segment, single_segment


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """The stacked A and the transposed B of each layer, for each row (or slot). With a single row, all rows of a batch share it."""

    a: Float[Tensor, "b R d_in"]
    bs: tuple[Float[Tensor, "b _r _D"], ...]

    def forward(
        self, x: Float[Tensor, "N d_in"], ys: Sequence[Float[Tensor, "N _D"]], segments: Sequence[Segment]
    ) -> list[Float[Tensor, "_n R _t"]]:
        """Add the updates to the layers' outputs `ys`; return h of every segment."""
        hs = []
        for segment in self._segments(segments, x):
            h = torch.bmm(self.a[segment.rows], segment.view(x).transpose(1, 2))
            for y, b, h_of_layer in zip(ys, self.bs, self._by_layer(h), strict=True):
                segment.view(y).baddbmm_(h_of_layer.transpose(1, 2), b[segment.rows])
            hs.append(h)
        return hs

    def backward(
        self,
        x: Float[Tensor, "N d_in"],
        hs: Sequence[Float[Tensor, "_n R _t"]],
        dys: Sequence[Float[Tensor, "N _D"]],
        dx: Float[Tensor, "N d_in"] | None,
        segments: Sequence[Segment],
        gradient: "LowRankUpdate | None" = None,
    ) -> None:
        """Add to the gradient of x, and overwrite `gradient` with that of the factors; either may be None."""
        for segment, h in zip(self._segments(segments, x), hs, strict=True):
            dy_views = [segment.view(dy) for dy in dys]
            us = [torch.bmm(b[segment.rows], dy.transpose(1, 2)) for b, dy in zip(self.bs, dy_views, strict=True)]
            u = us[0] if len(us) == 1 else torch.cat(us, dim=1)
            if gradient is not None:
                torch.bmm(u, segment.view(x), out=gradient.a[segment.rows])
                for db, h_of_layer, dy in zip(gradient.bs, self._by_layer(h), dy_views, strict=True):
                    torch.bmm(h_of_layer, dy, out=db[segment.rows])
            if dx is not None:
                segment.view(dx).baddbmm_(u.transpose(1, 2), self.a[segment.rows])

    def _segments(self, segments: Sequence[Segment], x: Float[Tensor, "N d_in"]) -> Sequence[Segment]:
        return segments if len(self.a) > 1 else single_segment(1, len(x))

    def _by_layer(self, h: Float[Tensor, "n R t"]) -> Sequence[Float[Tensor, "n _r t"]]:
        return (h,) if len(self.bs) == 1 else h.split([b.shape[1] for b in self.bs], dim=1)

    def select(self, slots: Int[Tensor, " b"]) -> "LowRankUpdate":
        """Return a copy of the factors of these slots."""
        return LowRankUpdate(self.a.index_select(0, slots), tuple(b.index_select(0, slots) for b in self.bs))

    def first(self, n_rows: int) -> "LowRankUpdate":
        """Return views of the first `n_rows` rows."""
        return LowRankUpdate(self.a[:n_rows], tuple(b[:n_rows] for b in self.bs))

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """A, then the B of each layer."""
        return (self.a, *self.bs)

    @property
    def n_bytes(self) -> int:
        """Bytes of the factors."""
        return sum(factor.nbytes for factor in self.factors)

    def zeros(self, n: int) -> "LowRankUpdate":
        """Return zeros of the same shapes for n rows."""
        return zero_update(n, self.a.shape[2], [b.shape[1] for b in self.bs], [b.shape[2] for b in self.bs], self.a)

    def empty_like(self) -> "LowRankUpdate":
        """Return uninitialised factors of the same shapes."""
        return LowRankUpdate(torch.empty_like(self.a), tuple(torch.empty_like(b) for b in self.bs))


def zero_update(n: int, d_in: int, ranks: Sequence[int], d_outs: Sequence[int], like: Tensor) -> LowRankUpdate:
    """Return zeros for n rows as views of one matrix, as kernels want them."""
    sizes = [sum(ranks) * d_in, *(rank * d_out for rank, d_out in zip(ranks, d_outs, strict=True))]
    a, *bs = like.new_zeros(n, sum(sizes)).split(sizes, dim=1)
    return LowRankUpdate(a.view(n, sum(ranks), d_in), tuple(b.view(n, rank, d) for b, rank, d in zip(bs, ranks, d_outs, strict=True)))
