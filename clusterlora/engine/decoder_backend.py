"""Forward and backward pass of stacked LoRA through a written-out decoder, by hand.

legend   b row, N tokens of all rows, M predicting tokens (a response token comes next), n scored ones of these, d width, D outputs of a
         layer, H query heads, G key-value heads, e width of a head, He = H * e, V vocabulary

The equations are those of `engine.decoder` and `engine.low_rank_update`. Compared with autograd, this pass saves only the activations
that its backward pass reads, skips tokens after a row's last prediction and most padding, runs everything after the last attention on
predicting tokens only, computes no gradient below the first adapter, and holds the logits of a few hundred tokens at a time. Attention
goes through autograd, for its fused kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from clusterlora.engine.adapter_slots import AdapterSlots
from clusterlora.engine.batch import RowSlots, TrainingBatch
from clusterlora.engine.cuda_graphs import CudaGraphCache
from clusterlora.engine.decoder import Block, Decoder, FusedLinear, apply_rope
from clusterlora.engine.decoder_batch import DecoderBatch, decoder_batch
from clusterlora.engine.low_rank_update import LowRankUpdate
from clusterlora.engine.packing import Padding, Segment
from clusterlora.engine.single_slot import SingleSlotLora
from clusterlora.engine.stacked_lora import FusedLora, FusedSpec, GatheredLora, StackedLora, input_gradient


def fused_specs(decoder: Decoder, layer_names: frozenset[str]) -> list[FusedSpec]:
    """Return one spec per fused linear that contains any of these layers."""
    specs = []
    for linear in decoder.fused_linears:
        targeted = [n for n, name in enumerate(linear.names) if name in layer_names]
        if targeted:
            names = tuple(linear.names[n] for n in targeted)
            specs.append(FusedSpec(names, linear.weight.shape[1], tuple(linear.d_outs[n] for n in targeted)))
    return specs


@dataclass(slots=True)
class _AdaptedLinear:
    """A fused linear with its factors for one batch: trained ones with the indices of the layers they adapt, and frozen ones."""

    linear: FusedLinear
    trained: tuple[GatheredLora | SingleSlotLora, tuple[int, ...]] | None
    frozen: LowRankUpdate | None

    def forward(self, x: Float[Tensor, "N d_in"], segments: Sequence[Segment]) -> tuple[list[Float[Tensor, "N _D"]], list[list[Tensor]]]:
        """Return each layer's outputs, and the activations that `backward` takes."""
        ys = self.linear.forward(x)
        return ys, [factors.forward(x, [ys[n] for n in layers], segments) for factors, layers in self._factors()]

    def backward(
        self,
        dys: Sequence[Float[Tensor, "N _D"]],
        x: Float[Tensor, "N d_in"],
        saved: list[list[Tensor]],
        segments: Sequence[Segment],
    ) -> Float[Tensor, "N d_in"]:
        """Add to the gradients of the trained factors; return the gradient of x."""
        dx = input_gradient(dys, self.linear.weights)
        self.backward_factors(dys, x, saved, dx, segments)
        return dx

    def backward_factors(
        self,
        dys: Sequence[Float[Tensor, "N _D"]],
        x: Float[Tensor, "N d_in"],
        saved: list[list[Tensor]],
        dx: Float[Tensor, "N d_in"] | None,
        segments: Sequence[Segment],
    ) -> None:
        """Add to the gradients of the trained factors and, unless it is None, their part to the gradient of x."""
        for (factors, layers), activations in zip(self._factors(), saved, strict=True):
            factors.backward(x, activations, [dys[n] for n in layers], dx, segments)

    def _factors(self) -> list[tuple[GatheredLora | SingleSlotLora | LowRankUpdate, tuple[int, ...]]]:
        """Return the trained factors and the frozen ones, as far as there are any, each with the indices of the layers they adapt."""
        frozen = [(self.frozen, tuple(range(len(self.linear.names))))] if self.frozen else []
        return [self.trained, *frozen] if self.trained else [*frozen]

    @property
    def n_bytes(self) -> int:
        """Bytes of the batch's factors."""
        return sum(factors.n_bytes for factors, _ in self._factors())


@dataclass(slots=True)
class _SavedActivations:
    """What the backward pass of a block reads, named as in the forward pass; `h_*` are the activations of an adapted linear's factors."""

    linears: tuple[_AdaptedLinear, _AdaptedLinear, _AdaptedLinear, _AdaptedLinear]
    a: Tensor
    unit_in: Tensor
    inverse_in: Tensor
    h_qkv: list[list[Tensor]]
    attention: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    """Of each segment, queries, keys and values as leaves of an autograd graph, and the attention output."""
    o: Tensor
    h_out: list[list[Tensor]]
    m: Tensor
    unit_mid: Tensor
    inverse_mid: Tensor
    h_gate_up: list[list[Tensor]]
    gate: Tensor
    up: Tensor
    product: Tensor
    h_down: list[list[Tensor]]

    @property
    def n_bytes(self) -> int:
        """Bytes of these activations and of the batch's factors."""
        values = [getattr(self, field.name) for field in fields(self)]
        return sum(tensor.nbytes for tensor in _tensors_of(values)) + sum(linear.n_bytes for linear in self.linears)


def _tensors_of(nested: object) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    return [tensor for part in nested for tensor in _tensors_of(part)] if isinstance(nested, list | tuple) else []


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
        self._like = lora.parameters
        lora_by_name = {fused.spec.names[0]: fused for fused in lora.loras}
        self._loras = [
            next((lora_by_name[name] for name in linear.names if name in lora_by_name), None) for linear in decoder.fused_linears
        ]
        # Below the first fused linear with an adapter no gradient is needed.
        self._first_block = next(number for number, fused in enumerate(self._loras) if fused is not None) // 4
        self.padding = decoder.padding
        self.reentrant = True
        self._graphs = CudaGraphCache[DecoderBatch](decoder.device)

    def __call__(self, batch: TrainingBatch, *, backward: bool = True) -> Float[Tensor, " b"]:
        """See `Backend`."""
        packed = decoder_batch(batch, decoder=self._decoder, padding=self.padding, backward=backward)
        return self._graphs(self._run, packed)[: len(batch.ids)]

    @torch.no_grad()
    def _run(self, batch: DecoderBatch) -> Float[Tensor, " b"]:
        """Run a batch forward and, if it says so, backward; return each row's loss."""
        blocks = self._decoder.blocks
        frozen = self._frozen_factors(batch.frozen_slot)
        x = functional.embedding(batch.ids, self._decoder.embedding)
        inputs: list[Tensor] = []
        saved: list[_SavedActivations | None] = []
        for number, block in enumerate(blocks):
            inputs.append(x)
            last = number == len(blocks) - 1
            x, activations = self._forward(number, block, x, batch, frozen, last=last)
            saved.append(None if not batch.backward or (self._checkpointing and not last) else activations)
        loss, dx = self._head(x, batch)
        if not batch.backward:
            return loss
        for number in reversed(range(self._first_block, len(blocks))):
            block, last = blocks[number], number == len(blocks) - 1
            activations = saved.pop() or self._forward(number, block, inputs[number], batch, frozen, last=last)[1]
            dx = self._backward(block, activations, dx, batch, last=last, first=number == self._first_block)
        return loss

    @torch.no_grad()
    def bytes_per_token(self, ids: Int[Tensor, "1 t"]) -> float:
        """See `Backend`."""
        slot = torch.zeros(1, dtype=torch.long, device=self._like.device)
        rows = RowSlots(slot, torch.ones(1, 1, dtype=self._like.dtype, device=self._like.device))
        predicts = torch.ones_like(ids, dtype=torch.bool)
        predicts[:, -1] = False
        training_batch = TrainingBatch(ids, predicts, rows, slot.cpu(), torch.ones(1))
        batch = decoder_batch(training_batch, decoder=self._decoder, padding=Padding(1), backward=False)
        # In a batch with other slots each row has gathered factors, which are to be counted.
        batch = replace(batch, single_slot=None)
        x = functional.embedding(batch.ids, self._decoder.embedding)
        n_bytes = 0
        for number, block in enumerate(self._decoder.blocks):
            n_bytes += x.nbytes
            x, activations = self._forward(number, block, x, batch, [None] * len(self._loras), last=False)
            # With checkpointing the activations of one block are in memory at a time, and all blocks have the same size.
            if not self._checkpointing or number == 0:
                n_bytes += activations.n_bytes
        return n_bytes / len(batch.ids)

    def close(self) -> None:
        """Do nothing: the model is never modified."""

    def _frozen_factors(self, slots: Int[Tensor, " b"]) -> list[LowRankUpdate | None]:
        """Return the frozen factors of each row for every fused linear."""
        if self._frozen_adapters is None:
            return [None] * len(self._loras)
        return self._frozen_adapters.of_each(slots) if self.padding.uniform else self._frozen_adapters.of_rows(slots)

    def _adapted_linears(
        self, block_number: int, block: Block, batch: DecoderBatch, frozen: Sequence[LowRankUpdate | None], *, last: bool
    ) -> tuple[_AdaptedLinear, _AdaptedLinear, _AdaptedLinear, _AdaptedLinear]:
        adapted = []
        for within, linear in enumerate(block.fused_linears):
            number, trained = 4 * block_number + within, None
            if (lora := self._loras[number]) is not None:
                layers = tuple(linear.names.index(name) for name in lora.spec.names)
                trained = (self._trained_factors(lora, batch, predicting_only=last and within > 0), layers)
            adapted.append(_AdaptedLinear(linear, trained, frozen[number]))
        return adapted[0], adapted[1], adapted[2], adapted[3]

    def _trained_factors(self, lora: FusedLora, batch: DecoderBatch, *, predicting_only: bool) -> GatheredLora | SingleSlotLora:
        """Return a fused LoRA's factors for all tokens of a batch, or for the predicting ones."""
        if batch.single_slot is None:
            return GatheredLora(lora, batch.rows, self._decoder.dtype)
        single = batch.single_slot
        input_scale = single.predicting_input_scale if predicting_only else single.input_scale
        return SingleSlotLora(lora, single.slot, input_scale, self._decoder.dtype)

    def _forward(
        self,
        number: int,
        block: Block,
        x: Float[Tensor, "N d"],
        batch: DecoderBatch,
        frozen: Sequence[LowRankUpdate | None],
        *,
        last: bool,
    ) -> tuple[Tensor, _SavedActivations]:
        """Return a block's output, of the last block for predicting tokens only, and the activations for its backward pass."""
        decoder, segments = self._decoder, batch.segments
        linears = self._adapted_linears(number, block, batch, frozen, last=last)
        qkv, out, gate_up, down = linears
        a, unit_in, inverse_in = decoder.norm(x, block.norm_in)
        y_qkv, h_qkv = qkv.forward(a, segments)
        o, attention = self._attend(decoder.heads(y_qkv, batch.cos, batch.sin), segments)
        if last:
            o, x, segments = o[batch.predicting_index], x[batch.predicting_index], batch.predicting_segments
        (y,), h_out = out.forward(o, segments)
        x = y.add_(x)
        m, unit_mid, inverse_mid = decoder.norm(x, block.norm_mid)
        (gate, up), h_gate_up = gate_up.forward(m, segments)
        product = functional.silu(gate).mul_(up)
        (y,), h_down = down.forward(product, segments)
        saved = _SavedActivations(
            linears, a, unit_in, inverse_in, h_qkv, attention, o, h_out, m, unit_mid, inverse_mid, h_gate_up, gate, up, product, h_down
        )
        return y.add_(x), saved

    def _backward(self, block: Block, saved: _SavedActivations, dx: Tensor, batch: DecoderBatch, *, last: bool, first: bool) -> Tensor:
        """Add the gradients of a block's factors; return the gradient of its input, for the `first` block an arbitrary tensor."""
        qkv, out, gate_up, down = saved.linears
        segments = batch.predicting_segments if last else batch.segments
        dproduct = down.backward([dx], saved.product, saved.h_down, segments)
        dup = functional.silu(saved.gate).mul_(dproduct)
        dgate = torch.ops.aten.silu_backward(dproduct.mul_(saved.up), saved.gate)
        dm = gate_up.backward([dgate, dup], saved.m, saved.h_gate_up, segments)
        dx = _norm_backward(dm, block.norm_mid, saved.unit_mid, saved.inverse_mid).add_(dx)
        do = out.backward([dx], saved.o, saved.h_out, segments)
        if last:
            do, dx = (_scatter(gradient, batch.index_in_predicting) for gradient in (do, dx))
        dqkv = self._attend_backward(saved.attention, do, batch)
        if first:
            qkv.backward_factors(dqkv, saved.a, saved.h_qkv, None, batch.segments)
            return dx
        da = qkv.backward(dqkv, saved.a, saved.h_qkv, batch.segments)
        return _norm_backward(da, block.norm_in, saved.unit_in, saved.inverse_in).add_(dx)

    def _attend(
        self, heads: tuple[Tensor, Tensor, Tensor], segments: Sequence[Segment]
    ) -> tuple[Float[Tensor, "N He"], list[tuple[Tensor, Tensor, Tensor, Tensor]]]:
        """Return the attention output of every token, and each segment's autograd graph as (queries, keys, values, output)."""
        outputs, graphs = [], []
        for segment in segments:
            q, k, v = (segment.view(part).detach().requires_grad_() for part in heads)
            with torch.enable_grad():
                attended = self._decoder.attend(q, k, v)
            outputs.append(attended.detach().flatten(0, 1))
            graphs.append((q, k, v, attended))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs), graphs

    def _attend_backward(
        self, graphs: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], do: Float[Tensor, "N He"], batch: DecoderBatch
    ) -> list[Float[Tensor, "N _D"]]:
        """Return the gradients of the outputs of the q, k and v layers, i.e. before rotation."""
        decoder, cos, sin = self._decoder, batch.cos, batch.sin
        n_heads = (decoder.n_heads, decoder.n_kv_heads, decoder.n_kv_heads)
        dheads = [do.new_empty(len(do), n, decoder.head_dim) for n in n_heads]
        for segment, (*leaves, attended) in zip(batch.segments, graphs, strict=True):
            for dhead, gradient in zip(dheads, torch.autograd.grad(attended, leaves, segment.view(do)), strict=True):
                segment.view(dhead).copy_(gradient)
        dq, dk, dv = dheads
        return [gradient.flatten(1) for gradient in (apply_rope(dq, cos, -sin), apply_rope(dk, cos, -sin), dv)]

    def _head(self, x: Float[Tensor, "M d"], batch: DecoderBatch) -> tuple[Float[Tensor, " b"], Float[Tensor, "M d"]]:
        """Return each row's weighted negative log-likelihood, and the gradient of their sum with respect to x."""
        decoder = self._decoder
        final, unit, inverse = decoder.norm(x, decoder.norm_out)
        hidden, dfinal = final[batch.scored], torch.zeros_like(final)
        nlls, gradients = [], []
        size = decoder.logit_rows_per_chunk
        for chunk in zip(hidden.split(size), batch.target.split(size), batch.weight.split(size), strict=True):
            nll, gradient = _cross_entropy(decoder.head, *chunk)
            nlls.append(nll)
            gradients.append(gradient)
        dfinal.index_copy_(0, batch.scored, torch.cat(gradients))
        nll = torch.cat(nlls) * batch.weight
        loss = torch.zeros(len(batch.slot), dtype=torch.float64, device=x.device).index_add_(0, batch.row, nll.double())
        return loss, _norm_backward(dfinal, decoder.norm_out, unit, inverse)


def _cross_entropy(
    head: Float[Tensor, "V d"], hidden: Float[Tensor, "n d"], targets: Int[Tensor, " n"], weight: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n d"]]:
    """Return each token's negative log-likelihood, and the gradient of their weighted sum with respect to the hidden states."""
    logits = functional.linear(hidden, head)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = logits.logsumexp(1, keepdim=True)
    nll = total[:, 0] - logits.gather(1, targets[:, None])[:, 0]
    gradient = logits.sub_(total).exp_().mul_(weight[:, None].to(logits.dtype))
    gradient[torch.arange(len(targets), device=targets.device), targets] -= weight.to(logits.dtype)
    return nll, gradient.to(head.dtype) @ head


def _norm_backward(dy: Tensor, weight: Tensor, unit: Tensor, inverse: Tensor) -> Tensor:
    """Return the gradient of RMSNorm's input: (g - unit * mean(g * unit)) * inverse, with g = dy * weight."""
    g = (dy * weight).to(inverse.dtype)
    unit = unit.to(inverse.dtype)
    along = torch.linalg.vecdot(g, unit)[..., None] / g.shape[-1]
    return torch.addcmul(g, unit, along, value=-1).mul_(inverse).to(dy.dtype)


def _scatter(x: Float[Tensor, "M d"], index_in_predicting: Int[Tensor, " N"]) -> Float[Tensor, "N d"]:
    """Return the predicting tokens' rows among all tokens, zeros elsewhere."""
    return torch.cat([x, x.new_zeros(1, x.shape[1])]).index_select(0, index_in_predicting)
