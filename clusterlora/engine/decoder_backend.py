"""Forward and backward pass of stacked LoRA through a written-out decoder.

legend   b row, N tokens of all rows, M predicting tokens (a response token comes next), n scored ones of these, d width, D outputs of a
         layer, H query heads, G key-value heads, e width of a head, He = H * e, V vocabulary

The equations are those of `engine.families.block` and `engine.low_rank_update`. Compared with autograd, this pass saves only the
activations that its backward pass reads, skips tokens after a row's last prediction and most padding, runs everything after the last
attention on predicting tokens only, computes no gradient below the first adapter, and holds the logits of a few hundred tokens at a time.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.engine import ragged_attention
from clusterlora.engine.adapter_slots import AdapterSlots, BlockUpdates, on_segments
from clusterlora.engine.attention import Heads
from clusterlora.engine.batch import RowSlots, TrainingBatch
from clusterlora.engine.cuda_graphs import CudaGraphCache, on_device, pinned
from clusterlora.engine.decoder_batch import DecoderBatch, PreparedBatch, complete, prepare
from clusterlora.engine.families.block import Block, BlockFactors, SavedActivations
from clusterlora.engine.families.decoder import Decoder
from clusterlora.engine.fused_linear import LayerFactors, LowRankFactors
from clusterlora.engine.packing import Padding
from clusterlora.engine.ragged import RaggedRows
from clusterlora.engine.ragged_attention import RowStarts
from clusterlora.engine.single_slot import SingleSlotLora
from clusterlora.engine.stacked_lora import FusedLora, FusedSpec, GatheredLora, StackedLora
from clusterlora.engine.tiled_lora import FROZEN, TRAINED, SlotFactors, TiledLora, columns_of
from clusterlora.engine.token_tiles import TokenTiles


def fused_specs(decoder: Decoder, layer_names: frozenset[str]) -> list[FusedSpec]:
    """Return one spec per fused linear that contains any of these layers."""
    specs = []
    for linear in decoder.fused_linears:
        targeted = [n for n, name in enumerate(linear.names) if name in layer_names]
        if targeted:
            names = tuple(linear.names[n] for n in targeted)
            specs.append(FusedSpec(names, linear.d_in, tuple(linear.d_outs[n] for n in targeted)))
    return specs


class DecoderBackend:
    """The `Backend` of stacked LoRA on a decoder."""

    def __init__(self, decoder: Decoder, lora: StackedLora, frozen_adapters: AdapterSlots | None, *, checkpointing: bool = False) -> None:
        """Prepare for batches.

        Args:
            frozen_adapters: adapters that are active under the trained ones.
            checkpointing: save only each block's input and recompute the rest in the backward pass (Chen et al. 2016, arXiv 1604.06174).
        """
        self._decoder = decoder
        self._frozen_adapters = frozen_adapters
        self._checkpointing = checkpointing
        self._parameters = lora.parameters
        casts = decoder.has_kernels and decoder.dtype != lora.parameters.dtype
        self._cast = torch.empty_like(lora.parameters, dtype=decoder.dtype) if casts else None
        """The parameters as kernels read them, where the base is in another dtype."""
        lora_by_name = {fused.spec.names[0]: fused for fused in lora.loras}
        self._loras = [_loras_of(block, lora_by_name) for block in decoder.blocks]
        # Below the first block with an adapter no gradient is needed.
        self._first_block = next(number for number, loras in enumerate(self._loras) if loras)
        self.padding = decoder.training_padding
        self._slot_factors = self._slot_factors_of(lora) if decoder.has_kernels else []
        self._frozen_factors = _frozen_slot_factors(decoder, frozen_adapters) if decoder.has_kernels and frozen_adapters else None
        self.reentrant = True
        self._graphs = CudaGraphCache[DecoderBatch](decoder.device, enabled=not decoder.is_quantised)

    def __call__(self, batch: TrainingBatch, *, backward: bool = True) -> Float[Tensor, " b"]:
        """See `Backend`."""
        prepared: PreparedBatch = batch.prepared or self.prepare(batch, backward=backward)
        complete_batch = complete(prepared, batch.slots.input_scale, decoder=self._decoder)
        losses = self._graphs(self._run, complete_batch)[: len(batch.rows)]
        return losses if prepared.order is None else torch.empty_like(losses).index_copy_(0, prepared.order.to(losses.device), losses)

    def prepare(self, batch: TrainingBatch, *, backward: bool) -> PreparedBatch:
        """See `Backend`."""
        prepared = prepare(batch, decoder=self._decoder, padding=self.padding, backward=backward)
        return replace(prepared, batch=pinned(prepared.batch, self._decoder.device))

    @torch.no_grad()
    def _run(self, batch: DecoderBatch) -> Float[Tensor, " b"]:
        """Run a batch forward and, if it says so, backward; return each row's loss."""
        blocks, rope = self._decoder.blocks, self._decoder.cos_sin(batch.position, batch.n_positions)
        if self._cast is not None:
            self._cast.copy_(self._parameters)
        frozen = self._frozen_updates(batch.frozen_slot)
        x = self._decoder.embed(batch.ids, batch.position)
        inputs: list[Tensor] = []
        saved: list[tuple[SavedActivations, BlockFactors] | None] = []
        for number, block in enumerate(blocks):
            last = number == len(blocks) - 1
            factors, attention = self._factors(number, batch, frozen, last=last), _attention(batch, last=last)
            inputs.append(x)
            x, activations = block.forward(x, factors, attention, *rope)
            saved.append((activations, factors) if batch.backward and (last or not self._checkpointing) else None)
        loss, dx = self._head(x, batch)
        if not batch.backward:
            return loss
        for number in reversed(range(self._first_block, len(blocks))):
            block, last = blocks[number], number == len(blocks) - 1
            attention = _attention(batch, last=last)
            if (block_saved := saved.pop()) is not None:
                activations, factors = block_saved
            else:
                factors = self._factors(number, batch, frozen, last=last)
                activations = block.forward(inputs[number], factors, attention, *rope)[1]
            dx = block.backward(dx, activations, factors, attention, *rope, input_gradient=number > self._first_block)
            # The activations of a block are freed before those of the next one are computed again.
            del activations, block_saved
        return loss

    @torch.no_grad()
    def bytes_per_token(self, ids: Int[Tensor, " t"]) -> float:
        """See `Backend`."""
        slot = torch.zeros(1, dtype=torch.long, device=self._parameters.device)
        slots = RowSlots(slot, torch.ones(1, 1, dtype=self._parameters.dtype, device=self._parameters.device))
        rows = RaggedRows(ids, torch.arange(1, len(ids) + 1) < len(ids), torch.tensor([len(ids)]))
        padding = self.padding if self._decoder.has_kernels else Padding(1)
        training_batch = TrainingBatch(rows, slots, slot.cpu(), torch.ones(1))
        prepared = prepare(training_batch, decoder=self._decoder, padding=padding, backward=False)
        batch = on_device(complete(prepared, slots.input_scale, decoder=self._decoder), self._decoder.device)
        # On a CPU, in a batch with other slots each row has gathered factors, which are to be counted.
        batch = replace(batch, single_slot=None)
        x = self._decoder.embed(batch.ids, batch.position)
        cos, sin = self._decoder.cos_sin(batch.position, batch.n_positions)
        n_bytes = 0
        no_frozen: list[BlockUpdates] = [{} for _ in self._loras]
        for number, block in enumerate(self._decoder.blocks):
            n_bytes += x.nbytes
            factors = self._factors(number, batch, no_frozen, last=False)
            x, activations = block.forward(x, factors, _attention(batch, last=False), cos, sin)
            # With checkpointing the activations of one block are in memory at a time, and all blocks have the same size.
            if not self._checkpointing or number == 0:
                n_bytes += activations.n_bytes + sum(of_layers.factors.n_bytes for of_linear in factors.values() for of_layers in of_linear)
        return n_bytes / len(batch.ids)

    def model_restored(self) -> nullcontext[None]:
        """Return a context that does nothing: the model is never modified."""
        return nullcontext()

    def close(self) -> None:
        """Do nothing: the model is never modified."""

    def _slot_factors_of(self, lora: StackedLora) -> list[dict[str, SlotFactors]]:
        """Return where kernels find the factors of each fused linear of each block, and add their gradients."""
        values = zip(lora.updates(self._parameters if self._cast is None else self._cast), lora.updates(lora.gradients), strict=True)
        update_by_name = {fused.spec.names[0]: pair for fused, pair in zip(lora.loras, values, strict=True)}
        return [
            {
                name: SlotFactors(
                    *update_by_name[fused.spec.names[0]], columns_of(block.linears[name], _layers(block, name, fused)), fused.first_feature
                )
                for name, fused in loras.items()
            }
            for block, loras in zip(self._decoder.blocks, self._loras, strict=True)
        ]

    def _frozen_updates(self, slots: Int[Tensor, " b"]) -> list[BlockUpdates]:
        """Return the frozen factors of each row, block by block."""
        if self._frozen_adapters is None or self._frozen_factors is not None:
            return [{} for _ in self._loras]
        return self._frozen_adapters.of_each(slots) if self.padding.uniform else self._frozen_adapters.of_rows(slots)

    def _factors(self, number: int, batch: DecoderBatch, frozen: Sequence[BlockUpdates], *, last: bool) -> BlockFactors:
        """Return the factors of a block, the trained ones first; after the last attention they are for predicting tokens only."""
        block = self._decoder.blocks[number]
        selected = batch.predicting_segments if last else batch.segments
        factors = {name: list(of_linear) for name, of_linear in on_segments(block, frozen[number], batch.segments, selected).items()}
        if self._frozen_factors is not None:
            for name, slots in self._frozen_factors[number].items():
                tokens, layers = _tiles(batch, predicting_only=last and name != "qkv"), tuple(range(len(block.linears[name].names)))
                factors[name].append(LayerFactors(TiledLora(slots, tokens, FROZEN), layers, ()))
        for name, lora in self._loras[number].items():
            predicting_only = last and name != "qkv"
            trained = self._trained_factors(number, name, batch, predicting_only=predicting_only)
            factors[name].insert(0, LayerFactors(trained, _layers(block, name, lora), selected if predicting_only else batch.segments))
        return factors

    def _trained_factors(self, number: int, name: str, batch: DecoderBatch, *, predicting_only: bool) -> LowRankFactors:
        """Return a fused LoRA's factors for all tokens of a batch, or for the predicting ones."""
        lora = self._loras[number][name]
        if batch.tokens is not None:
            tokens = _tiles(batch, predicting_only=predicting_only)
            return TiledLora(self._slot_factors[number][name], tokens, TRAINED, batch.input_scale)
        if batch.single_slot is None:
            return GatheredLora(lora, batch.row_slots, self._decoder.dtype)
        single = batch.single_slot
        input_scale = single.predicting_input_scale if predicting_only else single.input_scale
        return SingleSlotLora(lora, single.slot, input_scale, self._decoder.dtype)

    def _head(self, x: Float[Tensor, "M d"], batch: DecoderBatch) -> tuple[Float[Tensor, " b"], Float[Tensor, "M d"]]:
        """Return each row's weighted negative log-likelihood, and the gradient of their sum with respect to x."""
        decoder = self._decoder
        final, norm_out = decoder.norm_out.forward(x)
        hidden, dfinal = final[batch.scored], torch.zeros_like(final)
        nlls, gradients = [], []
        size = decoder.logit_rows_per_chunk
        for chunk in zip(hidden.split(size), batch.target.split(size), batch.weight.split(size), strict=True):
            nll, gradient = _cross_entropy(decoder, *chunk)
            nlls.append(nll)
            gradients.append(gradient)
        dfinal.index_copy_(0, batch.scored, torch.cat(gradients))
        nll = torch.cat(nlls) * batch.weight
        loss = torch.zeros(len(batch.slot), dtype=torch.float64, device=x.device).index_add_(0, batch.row, nll.double())
        return loss, decoder.norm_out.backward(dfinal, norm_out)


def _cross_entropy(
    decoder: Decoder, hidden: Float[Tensor, "n d"], targets: Int[Tensor, " n"], weight: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n d"]]:
    """Return each token's negative log-likelihood, and the gradient of their weighted sum with respect to the hidden states."""
    logits = decoder.logits(hidden)
    if decoder.has_kernels and decoder.logit_softcap is None:
        from clusterlora.engine.kernels.cross_entropy import cross_entropy_

        nll = cross_entropy_(logits, targets, weight)
        return nll, decoder.logits_backward(logits, logits)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = wide.logsumexp(1, keepdim=True)
    nll = total[:, 0] - wide.gather(1, targets[:, None])[:, 0]
    gradient = (wide.sub_(total) if decoder.logit_softcap is None else wide - total).exp_().mul_(weight[:, None].to(wide.dtype))
    gradient[torch.arange(len(targets), device=targets.device), targets] -= weight.to(gradient.dtype)
    return nll, decoder.logits_backward(gradient, logits)


def _loras_of(block: Block, lora_by_name: Mapping[str, FusedLora]) -> dict[str, FusedLora]:
    """Return the fused LoRA of each linear of a block that has one."""
    first = {name: next((layer for layer in linear.names if layer in lora_by_name), None) for name, linear in block.linears.items()}
    return {name: lora_by_name[layer] for name, layer in first.items() if layer is not None}


def _layers(block: Block, name: str, lora: FusedLora) -> tuple[int, ...]:
    """Return which layers of a fused linear have a LoRA."""
    return tuple(block.linears[name].names.index(layer) for layer in lora.spec.names)


def _frozen_slot_factors(decoder: Decoder, adapters: AdapterSlots) -> list[dict[str, SlotFactors]]:
    return [
        {name: SlotFactors(update, None, columns_of(block.linears[name], range(len(update.bs)))) for name, update in updates.items()}
        for block, updates in zip(decoder.blocks, adapters.blocks, strict=True)
    ]


def _tiles(batch: DecoderBatch, *, predicting_only: bool) -> TokenTiles:
    tiles = batch.predicting_tokens if predicting_only else batch.tokens
    assert tiles is not None, "kernels take tiles"
    return tiles


def _attention(batch: DecoderBatch, *, last: bool) -> "TrainingAttention":
    return TrainingAttention(batch, last=last) if batch.row_starts is None else RaggedTrainingAttention(batch, last=last)


class TrainingAttention:
    """The `DifferentiableAttention` of one block: rows attend to themselves. Autograd differentiates it, for its fused kernels."""

    def __init__(self, batch: DecoderBatch, *, last: bool) -> None:
        """Prepare for a block; of the last one only predicting tokens are needed."""
        self._batch = batch
        self._last = last

    def attend(
        self, heads: Heads, q: Float[Tensor, "N H e"], k: Float[Tensor, "N G e"], v: Float[Tensor, "N G e"]
    ) -> tuple[Float[Tensor, "M He"], list[tuple[Tensor, Tensor, Tensor, Tensor]]]:
        """See `Attention`; saved is each segment's autograd graph as (queries, keys, values, output)."""
        outputs, graphs = [], []
        for segment in self._batch.segments:
            leaves = tuple(segment.view(part).detach().requires_grad_() for part in (q, k, v))
            with torch.enable_grad():
                attended = heads.attend(*leaves)
            outputs.append(attended.detach().flatten(0, 1))
            graphs.append((*leaves, attended))
        return self.select(outputs[0] if len(outputs) == 1 else torch.cat(outputs)), graphs

    def backward(
        self, heads: Heads, saved: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], do: Float[Tensor, "N He"]
    ) -> tuple[Float[Tensor, "N H e"], Float[Tensor, "N G e"], Float[Tensor, "N G e"]]:
        """See `DifferentiableAttention`."""
        dq, dk, dv = (do.new_empty(len(do), n, heads.dim) for n in (heads.n, heads.n_kv, heads.n_kv))
        for segment, (*leaves, attended) in zip(self._batch.segments, saved, strict=True):
            for dhead, gradient in zip((dq, dk, dv), torch.autograd.grad(attended, leaves, segment.view(do)), strict=True):
                segment.view(dhead).copy_(gradient)
        return dq, dk, dv

    def select(self, x: Float[Tensor, "N d"]) -> Float[Tensor, "M d"]:
        """See `Attention`."""
        return x[self._batch.predicting_index] if self._last else x

    def scatter(self, dx: Float[Tensor, "M d"]) -> Float[Tensor, "N d"]:
        """See `DifferentiableAttention`."""
        if not self._last:
            return dx
        return torch.cat([dx, dx.new_zeros(1, dx.shape[1])]).index_select(0, self._batch.index_in_predicting)


class RaggedTrainingAttention(TrainingAttention):
    """The same for rows that are not padded."""

    def attend(self, heads: Heads, q: Float[Tensor, "N H e"], k: Float[Tensor, "N G e"], v: Float[Tensor, "N G e"]) -> tuple[Tensor, Any]:
        """See `Attention`."""
        attended, saved = ragged_attention.attend(heads, self._starts, q, k, v)
        return self.select(attended.flatten(1)), saved

    def backward(self, heads: Heads, saved: Any, do: Float[Tensor, "N He"]) -> tuple[Tensor, Tensor, Tensor]:
        """See `DifferentiableAttention`."""
        return ragged_attention.backward(heads, self._starts, saved, do.unflatten(1, (-1, heads.dim)))

    @property
    def _starts(self) -> RowStarts:
        assert self._batch.row_starts is not None, "the rows of this batch are padded"
        return self._batch.row_starts
