"""A batch as the written-out pass takes it: packed, on the decoder's device, and on a GPU of a kind that comes again.

legend   b row, t token of a row, N tokens of all rows, M those that predict a response, n those whose prediction is read, e width of a head
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clusterlora.models.cuda_graphs import bucket_size
from clusterlora.models.decoder import Decoder
from clusterlora.models.packing import Batch, Padding, Run, pack_batch
from clusterlora.training.stacked_lora import Rows


@dataclass(frozen=True, slots=True)
class DecoderBatch:
    """All that a pass reads beside the weights and the slots."""

    ids: Int[Tensor, " N"]
    cos: Float[Tensor, "N e"]
    sin: Float[Tensor, "N e"]
    runs: tuple[Run, ...]
    chosen: Int[Tensor, " M"]
    """Where among all tokens those that predict are."""
    chosen_runs: tuple[Run, ...]
    back: Int[Tensor, " N"]
    """Where among those that predict a token is; M for the others."""
    read: Int[Tensor, " n"]
    """Where among those that predict the ones that are read are."""
    row: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]
    """What a token's negative log-likelihood counts in its row's loss; padding that is read has none."""
    slot: Int[Tensor, " b"]
    factor: Float[Tensor, "b feature"]
    alone: "Alone | None"
    """The slot that all rows belong to, if they do, on a CPU."""
    frozen: Int[Tensor, " b"]
    learn: bool

    @property
    def rows(self) -> Rows:
        """The slots and factors of the rows."""
        return Rows(self.slot, self.factor)


@dataclass(frozen=True, slots=True)
class Alone:
    """The one slot of a batch, and what its A is multiplied by for every token."""

    slot: int
    factor: Float[Tensor, "N feature"]
    chosen_factor: Float[Tensor, "M feature"]


def batch_of(
    ids: Int[Tensor, "b t"],
    predicts: Bool[Tensor, "b t"],
    rows: Rows,
    frozen_slots: Int[Tensor, " b"],
    weights: Float[Tensor, " b"],
    *,
    decoder: Decoder,
    padding: Padding,
    learn: bool,
) -> DecoderBatch:
    """Return right-padded rows as a batch. Where rows are padded alike there may be more of them, which count for nothing."""
    if padding.alike:
        n_rows = len(ids)
        # More rows like the first one make few kinds of batches of many.
        which = torch.arange(bucket_size(n_rows))
        which[n_rows:] = 0
        ids, predicts, frozen_slots, weights = ids[which], predicts[which], frozen_slots[which], weights[which]
        weights[n_rows:] = 0
        which = which.to(decoder.device)
        rows = Rows(rows.slot[which], rows.factor[which])
    batch = pack_batch(ids, predicts, padding)
    cos, sin = decoder.turns(batch.tokens.place.to(decoder.device), batch.tokens.longest)
    back = torch.full_like(batch.ids, len(batch.chosen))
    back[batch.chosen[batch.predicting.real]] = batch.predicting.real
    read = _read(batch, ids[:, 1:][predicts[:, :-1]], weights, every=padding.alike)
    here = [part.to(decoder.device) for part in (batch.ids, batch.chosen, back, *read, frozen_slots)]
    return DecoderBatch(
        ids=here[0],
        cos=cos,
        sin=sin,
        runs=batch.tokens.runs,
        chosen=here[1],
        chosen_runs=batch.predicting.runs,
        back=here[2],
        read=here[3],
        row=here[4],
        target=here[5],
        weight=here[6],
        slot=rows.slot,
        factor=rows.factor,
        alone=None if padding.alike else _alone(batch, rows),
        frozen=here[7],
        learn=learn,
    )


def _alone(batch: Batch, rows: Rows) -> Alone | None:
    slot = int(rows.slot[0])
    if not bool((rows.slot == slot).all()):
        return None
    if rows.factor.shape[1] == 1:
        return Alone(slot, rows.factor[:1], rows.factor[:1])
    return Alone(slot, rows.factor[batch.tokens.row], rows.factor[batch.predicting.row])


def _read(batch: Batch, targets: Int[Tensor, " n"], weights: Float[Tensor, " b"], *, every: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return which of the tokens that predict are read, their rows, next tokens and weights; with `every`, padding too."""
    real, row = batch.predicting.real, batch.predicting.row
    if not every:
        return real, row[real], targets, weights[row[real]]
    target, weight = torch.zeros_like(row), weights.new_zeros(len(row))
    target[real], weight[real] = targets, weights[row[real]]
    return torch.arange(len(row)), row, target, weight
