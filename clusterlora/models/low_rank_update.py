"""Low-rank updates of layers that read the same tensor, for a batch whose rows have factors of their own.

legend   b row, t token, N tokens of all rows, n rows of a run, d_in width of x, r rank of a layer, R of all together, D outputs of a layer

Row b adds to the output of each layer, whose frozen weight is W, and backward, given dy_b,

    h_b = A_b x_b^T           y_b = x_b W^T + h_b^T B_b^T
    u_b = B_b^T dy_b^T        dx_b = dy_b W + u_b^T A_b
    dA_b = u_b x_b            dB_b^T = h_b dy_b

The A of all layers stand one under another, so x is read once. Tokens or outputs are the wide side of every product and ranks the high
one, which is why B is kept transposed: a CPU's kernels are two to eight times slower on products that are a rank wide.
Source: Hu et al. 2021, LoRA (arXiv 2106.09685).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.models.packing import Run, whole


@dataclass(frozen=True, slots=True)
class Update:
    """The factors of a batch's rows, or of slots: their A, and of each layer their B, transposed. One row alone is every row's."""

    a: Float[Tensor, "b R d_in"]
    bs: tuple[Float[Tensor, "b _r _D"], ...]

    def forward(
        self, x: Float[Tensor, "N d_in"], ys: Sequence[Float[Tensor, "N _D"]], runs: Sequence[Run]
    ) -> list[Float[Tensor, "_n R _t"]]:
        """Add to the layers' outputs; return what came out of A, run by run."""
        hs = []
        for run in self._runs(runs, x):
            h = torch.bmm(self.a[run.rows], run.of(x).transpose(1, 2))
            for y, b, part in zip(ys, self.bs, self._by_layer(h), strict=True):
                run.of(y).baddbmm_(part.transpose(1, 2), b[run.rows])
            hs.append(h)
        return hs

    def backward(
        self,
        x: Float[Tensor, "N d_in"],
        hs: Sequence[Float[Tensor, "_n R _t"]],
        dys: Sequence[Float[Tensor, "N _D"]],
        dx: Float[Tensor, "N d_in"] | None,
        runs: Sequence[Run],
        gradient: "Update | None" = None,
    ) -> None:
        """Add to the gradient of x and, with `gradient`, write the factors' own into it, whatever it held."""
        for run, h in zip(self._runs(runs, x), hs, strict=True):
            given = [run.of(dy) for dy in dys]
            us = [torch.bmm(b[run.rows], dy.transpose(1, 2)) for b, dy in zip(self.bs, given, strict=True)]
            u = us[0] if len(us) == 1 else torch.cat(us, dim=1)
            if gradient is not None:
                torch.bmm(u, run.of(x), out=gradient.a[run.rows])
                for of_b, part, dy in zip(gradient.bs, self._by_layer(h), given, strict=True):
                    torch.bmm(part, dy, out=of_b[run.rows])
            if dx is not None:
                run.of(dx).baddbmm_(u.transpose(1, 2), self.a[run.rows])

    def _runs(self, runs: Sequence[Run], x: Float[Tensor, "N d_in"]) -> Sequence[Run]:
        return runs if len(self.a) > 1 else whole(1, len(x))

    def _by_layer(self, h: Float[Tensor, "n R t"]) -> Sequence[Float[Tensor, "n _r t"]]:
        return (h,) if len(self.bs) == 1 else h.split([b.shape[1] for b in self.bs], dim=1)

    def of(self, slots: Int[Tensor, " b"]) -> "Update":
        """Return a copy of the factors of these slots."""
        return Update(self.a.index_select(0, slots), tuple(b.index_select(0, slots) for b in self.bs))

    def first(self, n_rows: int) -> "Update":
        """Return the first so many rows, as views."""
        return Update(self.a[:n_rows], tuple(b[:n_rows] for b in self.bs))

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """A, and then the B of each layer."""
        return (self.a, *self.bs)

    @property
    def n_bytes(self) -> int:
        """What the factors take."""
        return sum(factor.nbytes for factor in self.factors)

    def empty_like(self) -> "Update":
        """Return room for the gradients of these factors."""
        return Update(torch.empty_like(self.a), tuple(torch.empty_like(b) for b in self.bs))
