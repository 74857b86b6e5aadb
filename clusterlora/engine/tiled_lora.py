"""Low-rank factors of all slots for a batch cut into tiles of one slot: what the kernels of `engine.kernels.low_rank` compute.

legend   k slot, N tokens of all rows, d_in width of x, R ranks of all layers of a fused linear, D outputs of a layer
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clusterlora.engine.fused_linear import FusedLinear
from clusterlora.engine.low_rank_update import LowRankUpdate
from clusterlora.engine.packing import Segment
from clusterlora.engine.token_tiles import TokenTiles

TRAINED, FROZEN = 0, 1
"""Columns of a tile: which of its slots has the factors."""


class SlotFactors:
    """The factors of a fused linear's layers in all slots, as views of one matrix with a row per slot."""

    def __init__(self, update: LowRankUpdate, gradient: LowRankUpdate | None, columns: Sequence[int], first_feature: int = 0) -> None:
        """Describe where they are.

        Args:
            gradient: views of a matrix laid out in the same way.
            columns: where the outputs of each layer begin, counted from those of the first.
            first_feature: the first column of an input scale that belongs to these layers' inputs.
        """
        from clusterlora.engine.kernels.low_rank import layout

        a, bs = update.a, update.bs
        self.first_feature = first_feature
        self.factors = _rows(update)
        self.gradients = None if gradient is None else _rows(gradient)
        self.layout = layout(
            d_in=a.shape[2],
            ranks=[b.shape[1] for b in bs],
            d_outs=[b.shape[2] for b in bs],
            offsets=[int(b.storage_offset() - a.storage_offset()) for b in bs],
            columns=list(columns),
            device=a.device,
        )


def columns_of(linear: FusedLinear, layers: Sequence[int]) -> list[int]:
    """Return where the outputs of some layers of a fused linear begin, counted from those of the first of them."""
    starts = [sum(linear.d_outs[:n]) for n in layers]
    return [start - starts[0] for start in starts]


@dataclass(frozen=True, slots=True)
class TiledLora:
    """The `LowRankFactors` of a batch's tokens; gradients are added to the slots' own."""

    slots: SlotFactors
    tokens: TokenTiles
    column: int = TRAINED
    input_scale: Float[Tensor, "b feature"] | None = None
    """s m of every row over the inputs of all fused LoRAs, or a single number for all of them."""

    def forward(self, x: Float[Tensor, "N d_in"], ys: Sequence[Float[Tensor, "N _D"]], segments: Sequence[Segment]) -> list[Tensor]:  # noqa: ARG002
        """See `LowRankFactors`; the outputs are columns of one tensor."""
        from clusterlora.engine.kernels.low_rank import add_raised, lower

        slots, tiles = self.slots, self._tiles()
        h = lower(x, slots.factors, slots.layout, tiles, self._scale())
        add_raised(ys[0], h, slots.factors, slots.layout, tiles)
        return [h]

    def backward(
        self,
        x: Float[Tensor, "N d_in"],
        saved: Sequence[Tensor],
        dys: Sequence[Float[Tensor, "N _D"]],
        dx: Float[Tensor, "N d_in"] | None,
        segments: Sequence[Segment],  # noqa: ARG002
    ) -> None:
        """See `LowRankFactors`; the gradients of the outputs are columns of one tensor."""
        from clusterlora.engine.kernels.low_rank import add_gradients, lower_gradient

        slots, tiles = self.slots, self._tiles()
        if dx is None and slots.gradients is None:
            return
        u = lower_gradient(dys[0], slots.factors, slots.layout, tiles)
        add_gradients(x, saved[0], u, dys[0], dx, slots.factors, slots.gradients, slots.layout, tiles, self._scale())

    @property
    def n_bytes(self) -> int:
        """Bytes for this batch alone: none, the slots' own factors are read."""
        return 0

    def _tiles(self) -> Any:
        from clusterlora.engine.kernels.low_rank import Tiles

        tokens = self.tokens
        return Tiles(tokens.tiles, tokens.spans, tokens.starts, tokens.height, self.column)

    def _scale(self) -> Float[Tensor, "b _feature"] | None:
        scale = self.input_scale
        return scale if scale is None or scale.shape[1] == 1 else scale[:, self.slots.first_feature :]


def _rows(update: LowRankUpdate) -> Float[Tensor, "k _n"]:
    """Return the matrix rows that the factors are views of, from A on."""
    a, last = update.a, update.bs[-1]
    n = last.storage_offset() + last.shape[1] * last.shape[2] - a.storage_offset()
    return torch.as_strided(a, (len(a), n), (a.stride(0), 1), a.storage_offset())
