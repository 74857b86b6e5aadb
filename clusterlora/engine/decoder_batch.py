"""A training batch as the decoder backend takes it: packed, and on a GPU in shapes that recur.

legend   b row, N tokens of all rows, M predicting tokens (a response token comes next), n scored ones of these (whose
         logits are used)
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.engine.batch import RowSlots, TrainingBatch
from clusterlora.engine.cuda_graphs import bucket_size
from clusterlora.engine.families.decoder import Decoder
from clusterlora.engine.packing import PackedBatch, Padding, Segment, pack_batch
from clusterlora.engine.ragged_attention import RowStarts, row_starts
from clusterlora.engine.token_tiles import TokenTiles, token_tiles


@dataclass(frozen=True, slots=True)
class SingleSlot:
    """The slot of all rows of a batch, and the input scale of each token."""

    slot: int
    input_scale: Float[Tensor, "N feature"]
    predicting_input_scale: Float[Tensor, "M feature"]


@dataclass(frozen=True, slots=True)
class DecoderBatch:
    """The inputs of one pass besides the weights and the slots."""

    ids: Int[Tensor, " N"]
    position: Int[Tensor, " N"]
    n_positions: int
    """Every position is below."""
    segments: tuple[Segment, ...]
    predicting_index: Int[Tensor, " M"]
    """Indices of the predicting tokens among all tokens."""
    predicting_segments: tuple[Segment, ...]
    index_in_predicting: Int[Tensor, " N"]
    """Index of each token among the predicting ones; M for the others."""
    scored: Int[Tensor, " n"]
    """Indices into the predicting tokens whose logits are used."""
    row: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]
    """Weight of each scored token's negative log-likelihood in its row's loss; zero for padding."""
    slot: Int[Tensor, " b"]
    input_scale: Float[Tensor, "b feature"]
    single_slot: SingleSlot | None
    """Set on a CPU when all rows have one slot."""
    frozen_slot: Int[Tensor, " b"]
    tokens: TokenTiles | None
    """Where the tokens of each slot are, for kernels; set on a GPU alone, like the next two."""
    predicting_tokens: TokenTiles | None
    row_starts: RowStarts | None
    """Where rows begin, if they are not padded."""
    backward: bool

    @property
    def row_slots(self) -> RowSlots:
        """The slots and input scales of the rows."""
        return RowSlots(self.slot, self.input_scale)


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """What of a batch can be made while another one is computed: all on the CPU, and all but the input scale."""

    batch: DecoderBatch
    packed: PackedBatch
    order: Int[Tensor, " b"] | None
    """Which row of the training batch each row is; None if that is the same."""


def prepare(batch: TrainingBatch, *, decoder: Decoder, padding: Padding, backward: bool) -> PreparedBatch:
    """Return a batch packed, whatever its input scale. On a GPU it may have more rows and tokens; the loss of those has weight 0."""
    slot, order = batch.slots.slot.cpu(), None
    rows, frozen_slots, weights = batch.rows, batch.frozen_slots, batch.weights
    if decoder.has_kernels and not bool((slot.diff() >= 0).all()):
        # For kernels, the rows of a slot are together.
        order = slot.argsort(stable=True)
        rows, slot, frozen_slots, weights = rows.select(order), slot[order], frozen_slots[order], weights[order]
    n_rows, recurs = len(rows), padding.uniform or padding.ragged
    if recurs:
        # Copies of the first row fill the batch up to a bucket size, so that shapes recur; without padding, what they have is no token.
        index = torch.arange(bucket_size(n_rows))
        index[n_rows:] = 0
        rows, slot, frozen_slots, weights = rows if padding.ragged else rows.select(index), slot[index], frozen_slots[index], weights[index]
        weights[n_rows:] = 0
    packed = pack_batch(rows, padding)
    index_in_predicting = torch.full_like(packed.ids, len(packed.predicting_index))
    index_in_predicting[packed.predicting_index[packed.predicting.real]] = packed.predicting.real
    scored, row, target, weight = _scored(packed, rows.targets, weights, with_padding=recurs)
    tiles: list[TokenTiles | None] = [None, None]
    if decoder.has_kernels:
        of_rows = slot[:n_rows].tolist(), frozen_slots[:n_rows].tolist()
        tiles = [token_tiles(packing, *of_rows) for packing in (packed.tokens, packed.predicting)]
    starts = row_starts(packed.tokens) if padding.ragged else None
    prepared = DecoderBatch(
        ids=packed.ids,
        position=packed.tokens.position,
        n_positions=packed.tokens.longest if starts is None else starts.longest,
        segments=packed.tokens.segments,
        predicting_index=packed.predicting_index,
        predicting_segments=packed.predicting.segments,
        index_in_predicting=index_in_predicting,
        scored=scored,
        row=row,
        target=target,
        weight=weight,
        slot=slot,
        input_scale=torch.zeros(len(slot), 0),
        single_slot=None,
        frozen_slot=frozen_slots,
        tokens=tiles[0],
        predicting_tokens=tiles[1],
        row_starts=starts,
        backward=backward,
    )
    return PreparedBatch(prepared, packed, order)


def complete(prepared: PreparedBatch, input_scale: Float[Tensor, "b feature"], *, decoder: Decoder) -> DecoderBatch:
    """Return the batch with its input scale, which is on the decoder's device."""
    batch, packed = prepared.batch, prepared.packed
    input_scale = input_scale.to(decoder.device)
    if prepared.order is not None:
        input_scale = input_scale[prepared.order.to(decoder.device)]
    if n_more := len(batch.slot) - len(input_scale):
        input_scale = torch.cat([input_scale, input_scale[:1].expand(n_more, -1)])
    recurs = batch.row_starts is not None or decoder.padding.uniform
    single_slot = None if recurs else _single_slot(packed, RowSlots(batch.slot, input_scale))
    return replace(batch, input_scale=input_scale, single_slot=single_slot)


def _single_slot(packed: PackedBatch, slots: RowSlots) -> SingleSlot | None:
    slot, input_scale = int(slots.slot[0]), slots.input_scale
    if not bool((slots.slot == slot).all()):
        return None
    if input_scale.shape[1] == 1:
        return SingleSlot(slot, input_scale[:1], input_scale[:1])
    return SingleSlot(slot, input_scale[packed.tokens.row], input_scale[packed.predicting.row])


def _scored(
    packed: PackedBatch, targets: Int[Tensor, " n"], weights: Float[Tensor, " b"], *, with_padding: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the indices, rows, targets and weights of the scored tokens: the predicting ones, `with_padding` including padding."""
    real, row = packed.predicting.real, packed.predicting.row
    if not with_padding:
        return real, row[real], targets, weights[row[real]]
    target, weight = torch.zeros_like(row), weights.new_zeros(len(row))
    target[real], weight[real] = targets, weights[row[real]]
    return torch.arange(len(row)), row, target, weight
