"""Slots of finished adapters for a written-out decoder: every site's factors, one slot beside another; slot 0 is the bare base."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.errors import BadData
from clusterlora.models.decoder import Decoder, Site
from clusterlora.models.stacked import Weights

Factors = tuple[Float[Tensor, "b R d_in"], Float[Tensor, "b D R"]]
"""A and B of a site; the update of its joined weight is B @ A."""


class SiteSlots:
    """Adapters in memory, by slot: number 1 is the first."""

    def __init__(self, decoder: Decoder, weights: Sequence[Weights], *, dtype: torch.dtype | None = None) -> None:
        """Put adapters side by side, in the decoder's dtype when none is given.

        Raises:
            BadData: an adapter names a layer that the base does not have, or has in another shape.
        """
        known = {name for site in decoder.sites for name in site.names}
        for name in sorted({name for one in weights for name in one.factors} - known):
            raise BadData(f"the base model has no layer {name}; the adapter belongs to another base")
        self._by_site = [_side_by_side(site, weights, dtype or decoder.dtype) for site in decoder.sites]

    def of_rows(self, slots: Int[Tensor, " b"]) -> list[Factors | None]:
        """Return every site's factors for rows of these slots; None where no adapter touches it.

        Rows of one slot share one pair, [1, ...], which broadcasts over them.
        """
        if len(slots) and bool((slots == slots[0]).all()):
            if int(slots[0]) == 0:
                return [None] * len(self._by_site)
            slots = slots[:1]
        return [pair and (pair[0].index_select(0, slots), pair[1].index_select(0, slots)) for pair in self._by_site]

    def room(self, n_rows: int) -> list[Factors | None]:
        """Return factors of zeros for so many rows, to be filled."""
        return [pair and (_rows_like(pair[0], n_rows), _rows_like(pair[1], n_rows)) for pair in self._by_site]

    def fill(self, factors: Sequence[Factors | None], start: int, slots: Sequence[int]) -> None:
        """Set the factors of the rows from `start` on to those of these slots."""
        for rows, pair in zip(factors, self._by_site, strict=True):
            if rows is not None and pair is not None:
                numbers = torch.tensor(slots, device=pair[0].device)
                for target, source in zip(rows, pair, strict=True):
                    target[start : start + len(slots)] = source.index_select(0, numbers)


def _rows_like(factor: Tensor, n_rows: int) -> Tensor:
    return factor.new_zeros(n_rows, *factor.shape[1:])


def _side_by_side(site: Site, weights: Sequence[Weights], dtype: torch.dtype) -> Factors | None:
    """Return A [slot, R, d_in] and B [slot, D, R], each layer's factors in its own rows of D and columns of R, zeros elsewhere."""
    ranks = [max((one.factors[name][0].shape[0] for one in weights if name in one.factors), default=0) for name in site.names]
    if not sum(ranks):
        return None
    d_in, width = site.weight.shape[1], site.weight.shape[0]
    a = torch.zeros(len(weights) + 1, sum(ranks), d_in, dtype=dtype, device=site.weight.device)
    b = torch.zeros(len(weights) + 1, width, sum(ranks), dtype=dtype, device=site.weight.device)
    column = row = 0
    for name, rank, d_out in zip(site.names, ranks, site.d_outs, strict=True):
        for slot, one in enumerate(weights, start=1):
            if name in one.factors:
                down, up = one.factors[name]
                if down.shape[1] != d_in or up.shape[0] != d_out:
                    raise BadData(
                        f"adapter layer {name} maps {down.shape[1]} to {up.shape[0]}; the base maps {d_in} to {d_out}; "
                        "it belongs to another base"
                    )
                a[slot, column : column + down.shape[0]] = down
                b[slot, row : row + d_out, column : column + up.shape[1]] = up
        column, row = column + rank, row + d_out
    return a, b


def adapted(site: Site, x: Float[Tensor, "b t d_in"], factors: Factors | None) -> Float[Tensor, "b t D"]:
    """Return a site's outputs with each row's update."""
    y = site(x)
    if factors is None:
        return y
    a, b = factors
    if len(a) == 1 < len(x):
        return y.add_(torch.matmul(torch.matmul(x, a[0].T), b[0].T))
    return y.baddbmm_(torch.bmm(x, a.transpose(1, 2)), b.transpose(1, 2))
