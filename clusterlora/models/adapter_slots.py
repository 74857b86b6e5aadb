"""Slots of finished adapters for a written-out decoder: every site's factors, one slot beside another; slot 0 is the bare base."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.errors import BadData
from clusterlora.models.decoder import Decoder, Site
from clusterlora.models.low_rank_update import Update
from clusterlora.models.packing import Run
from clusterlora.models.stacked import Weights


class AdapterSlots:
    """Adapters in memory, by slot: number 1 is the first."""

    def __init__(self, decoder: Decoder, weights: Sequence[Weights], *, dtype: torch.dtype | None = None) -> None:
        """Put adapters side by side, in the decoder's dtype when none is given.

        Raises:
            BadData: an adapter names a layer that the base does not have, or has in another shape.
        """
        known = {name for site in decoder.sites for name in site.names}
        for name in sorted({name for one in weights for name in one.factors} - known):
            raise BadData(f"the base model has no layer {name}; the adapter belongs to another base")
        self._device = decoder.device
        self._by_site = [_side_by_side(site, weights, dtype or decoder.dtype) for site in decoder.sites]

    def of_rows(self, slots: Int[Tensor, " b"]) -> list[Update | None]:
        """Return every site's factors for rows of these slots; None where no adapter touches it.

        Rows of one slot share its factors.
        """
        if len(slots) and bool((slots == slots[0]).all()):
            if int(slots[0]) == 0:
                return [None] * len(self._by_site)
            slots = slots[:1]
        return self.of_each(slots)

    def of_each(self, slots: Int[Tensor, " b"]) -> list[Update | None]:
        """Return the same with factors of its own for each row, without a look at which slots they are."""
        return [update and update.of(slots) for update in self._by_site]

    def room(self, n_rows: int) -> list[Update | None]:
        """Return factors of zeros for so many rows, to be filled."""
        bare = torch.zeros(n_rows, dtype=torch.long, device=self._device)
        return self.of_each(bare)

    def fill(self, rows: Sequence[Update | None], start: int, slots: Sequence[int]) -> None:
        """Set the factors of the rows from `start` on to those of these slots."""
        numbers = torch.tensor(slots, device=self._device)
        for target, source in ((to, of) for to, of in zip(rows, self._by_site, strict=True) if to and of):
            for room, found in zip(target.factors, source.of(numbers).factors, strict=True):
                room[start : start + len(slots)] = found


def _side_by_side(site: Site, weights: Sequence[Weights], dtype: torch.dtype) -> Update | None:
    """Return the factors of every slot, ranks padded with zeros to the largest of any slot."""
    ranks = [max((one.factors[name][0].shape[0] for one in weights if name in one.factors), default=0) for name in site.names]
    if not sum(ranks):
        return None
    d_in, like, n_slots = site.weight.shape[1], site.weight.new_empty(0, dtype=dtype), len(weights) + 1
    a = like.new_zeros(n_slots, sum(ranks), d_in)
    bs = tuple(like.new_zeros(n_slots, rank, d_out) for rank, d_out in zip(ranks, site.d_outs, strict=True))
    for name, d_out, of_a, b in zip(site.names, site.d_outs, a.split(ranks, dim=1), bs, strict=True):
        for slot, one in enumerate(weights, start=1):
            if name in one.factors:
                down, up = one.factors[name]
                if down.shape[1] != d_in or up.shape[0] != d_out:
                    raise BadData(
                        f"adapter layer {name} maps {down.shape[1]} to {up.shape[0]}; the base maps {d_in} to {d_out}; "
                        "it belongs to another base"
                    )
                of_a[slot, : down.shape[0]] = down
                b[slot, : up.shape[1]] = up.T
    return Update(a, bs)


def adapted(site: Site, x: Float[Tensor, "N d_in"], update: Update | None, runs: Sequence[Run]) -> list[Float[Tensor, "N _D"]]:
    """Return the outputs of each layer of a site, with each row's update."""
    ys = site.apart(x)
    if update is not None:
        update.forward(x, ys, runs)
    return ys
