"""Finished adapters in slots for a written-out decoder: the factors of every fused linear, stacked over slots; slot 0 is the base model."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from clusterlora.engine.families.block import Block, BlockFactors
from clusterlora.engine.families.decoder import Decoder
from clusterlora.engine.fused_linear import LayerFactors
from clusterlora.engine.low_rank_update import LowRankUpdate, zero_update
from clusterlora.engine.packing import Segment
from clusterlora.engine.stacked import Weights
from clusterlora.errors import BadData

BlockUpdates = dict[str, LowRankUpdate]
"""The factors of the fused linears of a block that any adapter changes, by the names in `Block.linears`."""


class AdapterSlots:
    """Adapters by slot; the first is in slot 1.

    Where not all are to be in memory, the one that was asked for least recently gives its place to the next.
    """

    def __init__(self, decoder: Decoder, weights: Sequence[Weights], n_resident: int | None = None) -> None:
        """Stack adapters in the decoder's dtype.

        Args:
            weights: read once each here, to see that they fit, and again whenever one comes into memory.
            n_resident: how many are in memory at once, more only if rows of a pass ask for more; by default all.

        Raises:
            BadData: an adapter names a layer that the base does not have, or has in another shape.
        """
        self._weights, self._device = weights, decoder.device
        self._linears = [block.linears for block in decoder.blocks]
        ranks = _ranks(decoder, weights)
        n_places = min(len(weights), n_resident or len(weights))
        like = decoder.embedding.new_empty(0)
        self._updates = [_empty_block(block, ranks, n_places + 1, like) for block in decoder.blocks]
        self._place_by_slot: OrderedDict[int, int] = OrderedDict()
        """Where each slot in memory is; the one that was asked for least recently comes first."""
        self._n_places = n_places
        self._free = list(range(n_places, 0, -1))
        """Places whose content no slot has."""
        self._holds_all = n_places == len(weights)
        if self._holds_all:
            for slot, adapter in enumerate(weights, start=1):
                self._put(slot, adapter)

    def of_rows(self, slots: Int[Tensor, " b"]) -> list[BlockUpdates]:
        """Return every block's factors for rows of these slots.

        If all rows have the same slot they share one copy of its factors.
        """
        if len(slots) and bool((slots == slots[0]).all()):
            if int(slots[0]) == 0:
                return [{} for _ in self._updates]
            slots = slots[:1]
        return self.of_each(slots)

    def of_each(self, slots: Int[Tensor, " b"]) -> list[BlockUpdates]:
        """Return the same with a copy of the factors for each row; if all are in memory, the values of `slots` are not read."""
        places = slots if self._holds_all else self._places(slots.tolist())
        return [{name: update.select(places) for name, update in block.items()} for block in self._updates]

    def zeros(self, n_rows: int) -> list[BlockUpdates]:
        """Return zero factors for `n_rows` rows, to be filled by `fill`."""
        return self.of_each(torch.zeros(n_rows, dtype=torch.long, device=self._device))

    @property
    def blocks(self) -> Sequence[BlockUpdates]:
        """The factors of all slots, block by block; only where all adapters are in memory is a slot's place its number."""
        assert self._holds_all, "adapters take turns in memory, and a slot's place changes"
        return self._updates

    def fill(self, rows: Sequence[BlockUpdates], start: int, slots: Sequence[int]) -> None:
        """Overwrite the factors of the rows from `start` on with those of these slots."""
        index = torch.tensor(slots, device=self._device) if self._holds_all else self._places(slots)
        for block_rows, block in zip(rows, self._updates, strict=True):
            for name, update in block.items():
                for row_factors, slot_factors in zip(block_rows[name].factors, update.select(index).factors, strict=True):
                    row_factors[start : start + len(slots)] = slot_factors

    def _places(self, slots: Sequence[int]) -> Int[Tensor, " b"]:
        """Return where the adapters of these slots are, once all of them are in memory; place 0 is the base's."""
        wanted = dict.fromkeys(slot for slot in slots if slot)
        if len(wanted) > self._n_places:
            self._make_room(len(wanted))
        missing = [slot for slot in wanted if slot not in self._place_by_slot]
        for slot in wanted.keys() & self._place_by_slot.keys():
            self._place_by_slot.move_to_end(slot)
        for slot in missing:
            # Read first, and the place is the slot's last: where that fails, it is still the former's, or nobody's.
            adapter = self._weights[slot - 1]
            if not self._free:
                _, place = self._place_by_slot.popitem(last=False)
                self._free.append(place)
            self._put(self._free[-1], adapter)
            self._place_by_slot[slot] = self._free.pop()
        return torch.tensor([self._place_by_slot.get(slot, 0) for slot in slots], device=self._device)

    def _make_room(self, n_places: int) -> None:
        """Let more adapters be in memory, as many as are asked for at once."""
        more = n_places - self._n_places
        for updates in self._updates:
            for name, update in updates.items():
                updates[name] = larger = update.zeros(self._n_places + 1 + more)
                for part, former in zip(larger.factors, update.factors, strict=True):
                    part[: len(former)] = former
        self._free += range(n_places, self._n_places, -1)
        self._n_places = n_places

    def _put(self, place: int, adapter: Weights) -> None:
        for linears, updates in zip(self._linears, self._updates, strict=True):
            for name, update in updates.items():
                ranks = [b.shape[1] for b in update.bs]
                for layer, a, b in zip(linears[name].names, update.a.split(ranks, dim=1), update.bs, strict=True):
                    down, up = adapter.factors.get(layer, (a[place, :0], b[place, :0].T))
                    a[place, : len(down)], a[place, len(down) :] = down, 0
                    b[place, : len(down)], b[place, len(down) :] = up.T, 0


def _ranks(decoder: Decoder, weights: Sequence[Weights]) -> dict[str, int]:
    """Return the largest rank that any adapter has at each layer that one changes. Raises BadData where one does not fit the base."""
    shape = {
        name: (linear.d_in, d_out)
        for block in decoder.blocks
        for linear in block.linears.values()
        for name, d_out in zip(linear.names, linear.d_outs, strict=True)
    }
    ranks: dict[str, int] = {}
    for adapter in weights:
        for name, (down, up) in sorted(adapter.factors.items()):
            if name not in shape:
                raise BadData(f"the base model has no layer {name}; the adapter belongs to another base")
            d_in, d_out = shape[name]
            if down.shape[1] != d_in or up.shape[0] != d_out:
                raise BadData(
                    f"adapter layer {name} maps {down.shape[1]} to {up.shape[0]}; the base maps {d_in} to {d_out}; "
                    "it belongs to another base"
                )
            ranks[name] = max(ranks.get(name, 0), len(down))
    return ranks


def _empty_block(block: Block, ranks: Mapping[str, int], n_places: int, like: Tensor) -> BlockUpdates:
    """Return zeros for the fused linears that any adapter changes; ranks are padded to the largest of any adapter."""
    updates: BlockUpdates = {}
    for name, linear in block.linears.items():
        of_layers = [ranks.get(layer, 0) for layer in linear.names]
        if sum(of_layers):
            updates[name] = zero_update(n_places, linear.d_in, of_layers, linear.d_outs, like)
    return updates


def on_segments(block: Block, updates: BlockUpdates, segments: Sequence[Segment], selected: Sequence[Segment]) -> BlockFactors:
    """Return a block's factors for tokens in these segments, and after attention in those of the `selected` tokens."""
    factors: dict[str, list[LayerFactors]] = {name: [] for name in block.linears}
    for name, update in updates.items():
        layers = tuple(range(len(block.linears[name].names)))
        factors[name].append(LayerFactors(update, layers, segments if name == "qkv" else selected))
    return factors
