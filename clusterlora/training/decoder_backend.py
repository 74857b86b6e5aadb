"""Forward and backward pass of stacked LoRA through a written-out decoder, by hand.

legend   b row, N tokens of all rows, M those that predict a response, d width, D outputs of a layer, H query heads, G key-value heads,
         e width of a head, He = H * e

The equations are those of `models.decoder` and `models.low_rank_update`. Compared with autograd, this pass saves only the activations
that its backward pass reads, skips tokens after a row's last prediction and most padding, runs everything after the last attention on
predicting tokens only, computes no gradient below the first adapter, and holds the logits of a few hundred tokens at a time. Attention
goes through autograd, for its fused kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from clusterlora.models.adapter_slots import AdapterSlots
from clusterlora.models.cuda_graphs import CudaGraphCache
from clusterlora.models.decoder import Block, Decoder, Site, rotate
from clusterlora.models.low_rank_update import Update
from clusterlora.models.packing import Padding, Run
from clusterlora.training.decoder_batch import DecoderBatch, batch_of
from clusterlora.training.single_slot import SingleSlotLora
from clusterlora.training.stacked_lora import GatheredLora, Group, Place, Rows, StackedLora, through


def places(decoder: Decoder, names: frozenset[str]) -> list[Place]:
    """Return where these layers are: one place per site that has any of them."""
    found = []
    for site in decoder.sites:
        targeted = [n for n, name in enumerate(site.names) if name in names]
        if targeted:
            chosen = tuple(site.names[n] for n in targeted)
            found.append(Place(chosen, site.weight.shape[1], tuple(site.d_outs[n] for n in targeted)))
    return found


@dataclass(slots=True)
class _Site:
    """A site in a pass: its weights, the factors that are trained, with the layers of it they are for, and frozen ones beside them."""

    site: Site
    trained: tuple[GatheredLora | SingleSlotLora, tuple[int, ...]] | None
    frozen: Update | None

    def forward(self, x: Float[Tensor, "N d_in"], runs: Sequence[Run]) -> tuple[list[Float[Tensor, "N _D"]], list[list[Tensor]]]:
        """Return each layer's outputs, and what came out of the A of the trained factors and of the frozen ones."""
        ys = self.site.apart(x)
        return ys, [factors.forward(x, [ys[n] for n in where], runs) for factors, where in self._factors()]

    def backward(
        self,
        dys: Sequence[Float[Tensor, "N _D"]],
        x: Float[Tensor, "N d_in"],
        hs: list[list[Tensor]],
        runs: Sequence[Run],
        *,
        dx: bool = True,
    ) -> Tensor | None:
        """Add to the gradients of the trained factors; return the gradient of x when it is wanted."""
        back = through(dys, self.site.weights) if dx else None
        for (factors, where), h in zip(self._factors(), hs, strict=True):
            factors.backward(x, h, [dys[n] for n in where], back, runs)
        return back

    def _factors(self) -> list[tuple[GatheredLora | SingleSlotLora | Update, tuple[int, ...]]]:
        """Return the trained factors, if there are any, and then the frozen ones, each with the layers they belong to."""
        frozen = [(self.frozen, tuple(range(len(self.site.names))))] if self.frozen else []
        return [self.trained, *frozen] if self.trained else [*frozen]

    @property
    def n_bytes(self) -> int:
        """What the rows' gathered factors take."""
        return sum(factors.n_bytes for factors, _ in self._factors())


@dataclass(slots=True)
class _Kept:
    """What the backward pass of a block reads, by the names of the forward pass; `h` is what came out of a site's A."""

    sites: tuple[_Site, _Site, _Site, _Site]
    a: Tensor
    unit_in: Tensor
    inverse_in: Tensor
    h_qkv: list[list[Tensor]]
    attention: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    """Of every run, queries, keys and values as leaves of a graph, and what was found, which hangs on them."""
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
        """What this holds, the rows' gathered factors included."""
        held = [getattr(self, field.name) for field in fields(self)]
        return sum(tensor.nbytes for tensor in _tensors_of(held)) + sum(site.n_bytes for site in self.sites)


def _tensors_of(nested: object) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    return [tensor for part in nested for tensor in _tensors_of(part)] if isinstance(nested, list | tuple) else []


class DecoderBackend:
    """Adds the gradients of one batch to stacked LoRA on a decoder."""

    def __init__(self, decoder: Decoder, lora: StackedLora, frozen_adapters: AdapterSlots | None, *, checkpointing: bool = False) -> None:
        """Prepare for batches.

        Args:
            frozen_adapters: frozen adapters that are active under the trained ones.
            checkpointing: keep nothing of a block but its input, and run it again on the way back (Chen et al. 2016, arXiv 1604.06174).
        """
        self._decoder = decoder
        self._frozen_adapters = frozen_adapters
        self._checkpointing = checkpointing
        self._like = lora.parameters
        group_by_name = {group.place.names[0]: group for group in lora.groups}
        self._groups = [next((group_by_name[name] for name in site.names if name in group_by_name), None) for site in decoder.sites]
        # Below the first site that has an adapter nothing asks for a gradient.
        self._first_block = next(number for number, group in enumerate(self._groups) if group is not None) // 4
        self.padding = decoder.padding
        self.reentrant = True
        self._replays = CudaGraphCache[DecoderBatch](decoder.device)

    def __call__(
        self,
        ids: Int[Tensor, "b t"],
        predicts: Bool[Tensor, "b t"],
        rows: Rows,
        frozen_slots: Int[Tensor, " b"],
        weights: Float[Tensor, " b"],
        *,
        learn: bool = True,
    ) -> Float[Tensor, " b"]:
        """Run right-padded rows forward and backward, or forward alone; return each row's weighted sum of its response tokens' NLL."""
        given = batch_of(ids, predicts, rows, frozen_slots, weights, decoder=self._decoder, padding=self.padding, learn=learn)
        return self._replays(self._run, given)[: len(ids)]

    @torch.no_grad()
    def _run(self, given: DecoderBatch) -> Float[Tensor, " b"]:
        """Run a batch forward and, to learn, backward."""
        blocks = self._decoder.blocks
        frozen = self._frozen(given.frozen)
        x = functional.embedding(given.ids, self._decoder.embedding)
        inputs: list[Tensor] = []
        kept: list[_Kept | None] = []
        for number, block in enumerate(blocks):
            inputs.append(x)
            last = number == len(blocks) - 1
            x, of_block = self._forward(number, block, x, given, frozen, last=last)
            kept.append(None if not given.learn or (self._checkpointing and not last) else of_block)
        nll, dx = self._head(x, given)
        if not given.learn:
            return nll
        for number in reversed(range(self._first_block, len(blocks))):
            block, last = blocks[number], number == len(blocks) - 1
            of_block = kept.pop() or self._forward(number, block, inputs[number], given, frozen, last=last)[1]
            dx = self._backward(block, of_block, dx, given, last=last, first=number == self._first_block)
        return nll

    @torch.no_grad()
    def bytes_per_token(self, ids: Int[Tensor, "1 t"]) -> float:
        """Run one row forward and return how much the backward pass keeps of it, for each of its tokens."""
        one = torch.zeros(1, dtype=torch.long, device=self._like.device)
        rows = Rows(one, torch.ones(1, 1, dtype=self._like.dtype, device=self._like.device))
        predicts = torch.ones_like(ids, dtype=torch.bool)
        predicts[:, -1] = False
        given = batch_of(ids, predicts, rows, one.cpu(), torch.ones(1), decoder=self._decoder, padding=Padding(1), learn=False)
        # Beside others a row has factors of its own.
        given = replace(given, alone=None)
        x = functional.embedding(given.ids, self._decoder.embedding)
        n_bytes = 0
        for number, block in enumerate(self._decoder.blocks):
            n_bytes += x.nbytes
            x, of_block = self._forward(number, block, x, given, [None] * len(self._groups), last=False)
            # With checkpoints a block's inside is there once; it is the same size in every block.
            if not self._checkpointing or number == 0:
                n_bytes += of_block.n_bytes
        return n_bytes / len(given.ids)

    def close(self) -> None:
        """The model itself was never touched."""

    def _frozen(self, slots: Int[Tensor, " b"]) -> list[Update | None]:
        """Return every site's frozen factors of each row."""
        if self._frozen_adapters is None:
            return [None] * len(self._groups)
        return self._frozen_adapters.of_each(slots) if self.padding.alike else self._frozen_adapters.of_rows(slots)

    def _sites(
        self, number: int, block: Block, given: DecoderBatch, frozen: Sequence[Update | None], *, last: bool
    ) -> tuple[_Site, _Site, _Site, _Site]:
        found = []
        for place, site in enumerate(block.sites):
            at, trained = 4 * number + place, None
            if (group := self._groups[at]) is not None:
                where = tuple(site.names.index(name) for name in group.place.names)
                trained = (self._factors(group, given, chosen=last and place > 0), where)
            found.append(_Site(site, trained, frozen[at]))
        return found[0], found[1], found[2], found[3]

    def _factors(self, group: Group, given: DecoderBatch, *, chosen: bool) -> GatheredLora | SingleSlotLora:
        """Return a group's factors for all tokens of a batch, or for those alone that predict a response."""
        if given.alone is None:
            return GatheredLora(group, given.rows, self._decoder.dtype)
        factor = given.alone.chosen_factor if chosen else given.alone.factor
        return SingleSlotLora(group, given.alone.slot, factor, self._decoder.dtype)

    def _forward(
        self,
        number: int,
        block: Block,
        x: Float[Tensor, "N d"],
        given: DecoderBatch,
        frozen: Sequence[Update | None],
        *,
        last: bool,
    ) -> tuple[Tensor, _Kept]:
        """Run a block; the last one after its attention for the tokens that predict a response alone."""
        decoder, runs = self._decoder, given.runs
        sites = self._sites(number, block, given, frozen, last=last)
        qkv, out, gate_up, down = sites
        a, unit_in, inverse_in = decoder.norm(x, block.norm_in)
        y_qkv, h_qkv = qkv.forward(a, runs)
        o, attention = self._attend(decoder.heads(y_qkv, given.cos, given.sin), runs)
        if last:
            o, x, runs = o[given.chosen], x[given.chosen], given.chosen_runs
        (y,), h_out = out.forward(o, runs)
        x = y.add_(x)
        m, unit_mid, inverse_mid = decoder.norm(x, block.norm_mid)
        (gate, up), h_gate_up = gate_up.forward(m, runs)
        product = functional.silu(gate).mul_(up)
        (y,), h_down = down.forward(product, runs)
        kept = _Kept(
            sites, a, unit_in, inverse_in, h_qkv, attention, o, h_out, m, unit_mid, inverse_mid, h_gate_up, gate, up, product, h_down
        )
        return y.add_(x), kept

    def _backward(self, block: Block, kept: _Kept, dx: Tensor, given: DecoderBatch, *, last: bool, first: bool) -> Tensor:
        """Add the gradients of a block's factors; return the gradient of its input (of the first block, nothing of use)."""
        qkv, out, gate_up, down = kept.sites
        runs = given.chosen_runs if last else given.runs
        dproduct = _wanted(down.backward([dx], kept.product, kept.h_down, runs))
        dup = functional.silu(kept.gate).mul_(dproduct)
        dgate = torch.ops.aten.silu_backward(dproduct.mul_(kept.up), kept.gate)
        dm = _wanted(gate_up.backward([dgate, dup], kept.m, kept.h_gate_up, runs))
        dx = _norm_backward(dm, block.norm_mid, kept.unit_mid, kept.inverse_mid).add_(dx)
        do = _wanted(out.backward([dx], kept.o, kept.h_out, runs))
        if last:
            do, dx = (_put_back(part, given.back) for part in (do, dx))
        dqkv = self._attend_backward(kept.attention, do, given)
        da = qkv.backward(dqkv, kept.a, kept.h_qkv, given.runs, dx=not first)
        return dx if da is None else _norm_backward(da, block.norm_in, kept.unit_in, kept.inverse_in).add_(dx)

    def _attend(
        self, heads: tuple[Tensor, Tensor, Tensor], runs: Sequence[Run]
    ) -> tuple[Float[Tensor, "N He"], list[tuple[Tensor, Tensor, Tensor, Tensor]]]:
        """Return what every token's attention found, and the graph of each run."""
        found, graphs = [], []
        for run in runs:
            q, k, v = (run.of(part).detach().requires_grad_() for part in heads)
            with torch.enable_grad():
                attended = self._decoder.attend(q, k, v)
            found.append(attended.detach().flatten(0, 1))
            graphs.append((q, k, v, attended))
        return found[0] if len(found) == 1 else torch.cat(found), graphs

    def _attend_backward(
        self, graphs: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], do: Float[Tensor, "N He"], given: DecoderBatch
    ) -> list[Float[Tensor, "N _D"]]:
        """Return the gradients of queries, keys and values as the layers put them out."""
        decoder, cos, sin = self._decoder, given.cos, given.sin
        n_heads = (decoder.n_heads, decoder.n_kv_heads, decoder.n_kv_heads)
        into = [do.new_empty(len(do), n, decoder.head_dim) for n in n_heads]
        for run, (*leaves, attended) in zip(given.runs, graphs, strict=True):
            for to, part in zip(into, torch.autograd.grad(attended, leaves, run.of(do)), strict=True):
                run.of(to).copy_(part)
        dq, dk, dv = into
        return [part.flatten(1) for part in (rotate(dq, cos, -sin), rotate(dk, cos, -sin), dv)]

    def _head(self, x: Float[Tensor, "M d"], given: DecoderBatch) -> tuple[Float[Tensor, " b"], Float[Tensor, "M d"]]:
        """Return each row's weighted negative log-likelihood and the gradient of the sum with respect to x."""
        decoder = self._decoder
        final, unit, inverse = decoder.norm(x, decoder.norm_out)
        hidden, dfinal = final[given.read], torch.zeros_like(final)
        found, gradients = [], []
        size = decoder.rows_of_logits
        for at_once in zip(hidden.split(size), given.target.split(size), given.weight.split(size), strict=True):
            nll, gradient = _cross_entropy(decoder.head, *at_once)
            found.append(nll)
            gradients.append(gradient)
        dfinal.index_copy_(0, given.read, torch.cat(gradients))
        nll = torch.cat(found) * given.weight
        per_row = torch.zeros(len(given.slot), dtype=torch.float64, device=x.device).index_add_(0, given.row, nll.double())
        return per_row, _norm_backward(dfinal, decoder.norm_out, unit, inverse)


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
    """Return the gradient of a root-mean-square norm's input: (g - unit * mean(g * unit)) * inverse, with g = dy * weight."""
    g = (dy * weight).to(inverse.dtype)
    unit = unit.to(inverse.dtype)
    along = torch.linalg.vecdot(g, unit)[..., None] / g.shape[-1]
    return torch.addcmul(g, unit, along, value=-1).mul_(inverse).to(dy.dtype)


def _put_back(x: Float[Tensor, "M d"], back: Int[Tensor, " N"]) -> Float[Tensor, "N d"]:
    """Return the rows of the tokens that predict in their places among all, zeros elsewhere."""
    return torch.cat([x, x.new_zeros(1, x.shape[1])]).index_select(0, back)


def _wanted(gradient: Tensor | None) -> Tensor:
    assert gradient is not None, "a gradient that was asked for was not computed"
    return gradient
