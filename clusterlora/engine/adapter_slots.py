"""Finished adapters in slots for a written-out decoder: the factors of every fused linear, stacked over slots; slot 0 is the base model."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.engine.decoder import Decoder, FusedLinear
from clusterlora.engine.low_rank_update import LowRankUpdate
from clusterlora.engine.packing import Segment
from clusterlora.engine.stacked import Weights
from clusterlora.errors import BadData


class AdapterSlots:
    """Adapters in memory; the first is in slot 1."""

    def __init__(self, decoder: Decoder, weights: Sequence[Weights]) -> None:
        """Stack adapters in the decoder's dtype.

        Raises:
            BadData: an adapter names a layer that the base does not have, or has in another shape.
        """
        layer_names = {name for linear in decoder.fused_linears for name in linear.names}
        for name in sorted({name for adapter in weights for name in adapter.factors} - layer_names):
            raise BadData(f"the base model has no layer {name}; the adapter belongs to another base")
        self._device = decoder.device
        self._updates = [_stacked(linear, weights, decoder.dtype) for linear in decoder.fused_linears]

    def of_rows(self, slots: Int[Tensor, " b"]) -> list[LowRankUpdate | None]:
        """Return every fused linear's factors for rows of these slots; None where no adapter changes it.

        If all rows have the same slot they share one copy of its factors.
        """
        if len(slots) and bool((slots == slots[0]).all()):
            if int(slots[0]) == 0:
                return [None] * len(self._updates)
            slots = slots[:1]
        return self.of_each(slots)

    def of_each(self, slots: Int[Tensor, " b"]) -> list[LowRankUpdate | None]:
        """Return the same with a copy of the factors for each row; does not read the values of `slots`, so it can be captured."""
        return [update and update.select(slots) for update in self._updates]

    def zeros(self, n_rows: int) -> list[LowRankUpdate | None]:
        """Return zero factors for `n_rows` rows, to be filled by `fill`."""
        base_slots = torch.zeros(n_rows, dtype=torch.long, device=self._device)
        return self.of_each(base_slots)

    def fill(self, rows: Sequence[LowRankUpdate | None], start: int, slots: Sequence[int]) -> None:
        """Overwrite the factors of the rows from `start` on with those of these slots."""
        index = torch.tensor(slots, device=self._device)
        for target, source in ((to, of) for to, of in zip(rows, self._updates, strict=True) if to and of):
            for row_factors, slot_factors in zip(target.factors, source.select(index).factors, strict=True):
                row_factors[start : start + len(slots)] = slot_factors


def _stacked(linear: FusedLinear, weights: Sequence[Weights], dtype: torch.dtype) -> LowRankUpdate | None:
    """Return the factors of every slot, ranks padded with zeros to the largest of any slot; None if no adapter changes the layers."""
    ranks = [max((adapter.factors[name][0].shape[0] for adapter in weights if name in adapter.factors), default=0) for name in linear.names]
    if not sum(ranks):
        return None
    d_in, like, n_slots = linear.weight.shape[1], linear.weight.new_empty(0, dtype=dtype), len(weights) + 1
    a = like.new_zeros(n_slots, sum(ranks), d_in)
    bs = tuple(like.new_zeros(n_slots, rank, d_out) for rank, d_out in zip(ranks, linear.d_outs, strict=True))
    for name, d_out, a_of_layer, b in zip(linear.names, linear.d_outs, a.split(ranks, dim=1), bs, strict=True):
        for slot, adapter in enumerate(weights, start=1):
            if name in adapter.factors:
                down, up = adapter.factors[name]
                if down.shape[1] != d_in or up.shape[0] != d_out:
                    raise BadData(
                        f"adapter layer {name} maps {down.shape[1]} to {up.shape[0]}; the base maps {d_in} to {d_out}; "
                        "it belongs to another base"
                    )
                a_of_layer[slot, : down.shape[0]] = down
                b[slot, : up.shape[1]] = up.T
    return LowRankUpdate(a, bs)


def adapted(
    linear: FusedLinear, x: Float[Tensor, "N d_in"], update: LowRankUpdate | None, segments: Sequence[Segment]
) -> list[Float[Tensor, "N _D"]]:
    """Return the outputs of each layer of a fused linear, with each row's update."""
    ys = linear.forward(x)
    if update is not None:
        update.forward(x, ys, segments)
    return ys
