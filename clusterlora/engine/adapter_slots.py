"""Finished adapters in slots for a written-out decoder: the factors of every fused linear, stacked over slots; slot 0 is the base model."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from clusterlora.engine.families.block import Block, BlockFactors
from clusterlora.engine.families.decoder import Decoder
from clusterlora.engine.fused_linear import FusedLinear, LayerFactors
from clusterlora.engine.low_rank_update import LowRankUpdate
from clusterlora.engine.packing import Segment
from clusterlora.engine.stacked import Weights
from clusterlora.errors import BadData

BlockUpdates = dict[str, LowRankUpdate]
"""The factors of the fused linears of a block that any adapter changes, by the names in `Block.linears`."""


class AdapterSlots:
    """Adapters in memory; the first is in slot 1."""

    def __init__(self, decoder: Decoder, weights: Sequence[Weights]) -> None:
        """Stack adapters in the decoder's dtype.

        Raises:
            BadData: an adapter names a layer that the base does not have, or has in another shape.
        """
        for name in sorted({name for adapter in weights for name in adapter.factors} - decoder.layer_names):
            raise BadData(f"the base model has no layer {name}; the adapter belongs to another base")
        self._device = decoder.device
        self._updates = [_stacked_block(block, weights, decoder.embedding.new_empty(0)) for block in decoder.blocks]

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
        """Return the same with a copy of the factors for each row; does not read the values of `slots`, so it can be captured."""
        return [{name: update.select(slots) for name, update in block.items()} for block in self._updates]

    def zeros(self, n_rows: int) -> list[BlockUpdates]:
        """Return zero factors for `n_rows` rows, to be filled by `fill`."""
        base_slots = torch.zeros(n_rows, dtype=torch.long, device=self._device)
        return self.of_each(base_slots)

    def fill(self, rows: Sequence[BlockUpdates], start: int, slots: Sequence[int]) -> None:
        """Overwrite the factors of the rows from `start` on with those of these slots."""
        index = torch.tensor(slots, device=self._device)
        for block_rows, block in zip(rows, self._updates, strict=True):
            for name, update in block.items():
                for row_factors, slot_factors in zip(block_rows[name].factors, update.select(index).factors, strict=True):
                    row_factors[start : start + len(slots)] = slot_factors


def _stacked_block(block: Block, weights: Sequence[Weights], like: Tensor) -> BlockUpdates:
    updates = {name: _stacked(linear, weights, like) for name, linear in block.linears.items()}
    return {name: update for name, update in updates.items() if update is not None}


def _stacked(linear: FusedLinear, weights: Sequence[Weights], like: Tensor) -> LowRankUpdate | None:
    """Return the factors of every slot, ranks padded with zeros to the largest of any slot; None if no adapter changes the layers."""
    ranks = [max((adapter.factors[name][0].shape[0] for adapter in weights if name in adapter.factors), default=0) for name in linear.names]
    if not sum(ranks):
        return None
    d_in, n_slots = linear.d_in, len(weights) + 1
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


def on_segments(block: Block, updates: BlockUpdates, segments: Sequence[Segment], selected: Sequence[Segment]) -> BlockFactors:
    """Return a block's factors for tokens in these segments, and after attention in those of the `selected` tokens."""
    factors: dict[str, list[LayerFactors]] = {name: [] for name in block.linears}
    for name, update in updates.items():
        layers = tuple(range(len(block.linears[name].names)))
        factors[name].append(LayerFactors(update, layers, segments if name == "qkv" else selected))
    return factors
