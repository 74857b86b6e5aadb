"""Forward and backward pass of stacked LoRA through a written-out decoder, by hand.

legend   b row, t token, s response token of a row, d width, D outputs of a site, H query heads, G key-value heads, e width of a head

The equations are those of `models.decoder` and `training.stacked_lora`. Written by hand, a pass keeps exactly what its backward pass
reads, runs what follows the last attention for the tokens that predict a response alone, computes no gradient below the first
adapter, and never holds the logits of more than a few hundred tokens. Only attention is left to autograd, for its fused kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from clusterlora.models.decoder import LOGITS_AT_ONCE, PAD_TO, Block, Decoder, Site, positions_of, rotate
from clusterlora.models.site_slots import Factors, SiteSlots
from clusterlora.training.stacked_lora import Group, Place, Rows, StackedLora


def places(decoder: Decoder, names: frozenset[str]) -> list[Place]:
    """Return where these layers are: one place per site that has any of them."""
    found = []
    for site in decoder.sites:
        ends = [sum(site.d_outs[: n + 1]) for n in range(len(site.names))]
        targeted = [n for n, name in enumerate(site.names) if name in names]
        if targeted:
            outputs = tuple(slice(ends[n] - site.d_outs[n], ends[n]) for n in targeted)
            found.append(Place(tuple(site.names[n] for n in targeted), site.weight.shape[1], site.weight.shape[0], outputs))
    return found


@dataclass(slots=True)
class _Site:
    """A site in a pass: its weights, the rows' factors (trained ones first, frozen ones after them), and where gradients go."""

    site: Site
    rows: Rows
    group: Group | None
    factors: Factors | None

    def forward(self, x: Float[Tensor, "b t d_in"]) -> tuple[Float[Tensor, "b t D"], Float[Tensor, "b t R"] | None]:
        y = self.site(x)
        if self.factors is None:
            return y, None
        a, b = self.factors
        h = torch.bmm(x, a.transpose(1, 2))
        return y.baddbmm_(h, b.transpose(1, 2)), h

    def backward(self, dy: Float[Tensor, "b t D"], x: Tensor, h: Tensor | None, *, dx: bool = True) -> Tensor | None:
        """Add to the gradients of the trained factors; return the gradient of x when it is wanted."""
        u = None
        if self.factors is not None and h is not None:
            u = torch.bmm(dy, self.factors[1])
            if self.group is not None:
                trained = slice(0, self.group.total_rank)
                grad_a = torch.bmm(u[..., trained].transpose(1, 2), x)
                self.group.add(self.rows, grad_a, torch.bmm(dy.transpose(1, 2), h[..., trained]))
        if not dx:
            return None
        through = torch.matmul(dy, self.site.weight)
        return through if u is None or self.factors is None else through.baddbmm_(u, self.factors[0])


@dataclass(slots=True)
class _Kept:
    """What the backward pass of a block reads, by the names of the forward pass; `h` is what came out of a site's A."""

    sites: tuple[_Site, _Site, _Site, _Site]
    a: Tensor
    unit_in: Tensor
    inverse_in: Tensor
    h_qkv: Tensor | None
    attention: tuple[Tensor, Tensor, Tensor, Tensor]
    """Queries, keys and values as leaves of a graph, and what was found, which hangs on them."""
    o: Tensor
    h_out: Tensor | None
    m: Tensor
    unit_mid: Tensor
    inverse_mid: Tensor
    h_gate_up: Tensor | None
    gate: Tensor
    up: Tensor
    product: Tensor
    h_down: Tensor | None

    @property
    def n_bytes(self) -> int:
        """What this holds, the rows' gathered factors included."""
        held = [getattr(self, field.name) for field in fields(self) if field.name not in ("sites", "attention")]
        factors = [factor for site in self.sites for factor in site.factors or ()]
        return sum(tensor.nbytes for tensor in (*held, *self.attention, *factors) if tensor is not None)


class DecoderPass:
    """Adds the gradients of one batch to stacked LoRA on a decoder."""

    def __init__(self, decoder: Decoder, lora: StackedLora, underlays: SiteSlots | None, *, checkpointing: bool = False) -> None:
        """Prepare for batches.

        Args:
            underlays: frozen adapters that are active under the trained ones.
            checkpointing: keep nothing of a block but its input, and run it again on the way back (Chen et al. 2016, arXiv 1604.06174).
        """
        self._decoder = decoder
        self._underlays = underlays
        self._checkpointing = checkpointing
        self._like = lora.parameters
        group_by_name = {group.place.names[0]: group for group in lora.groups}
        self._groups = [next((group_by_name[name] for name in site.names if name in group_by_name), None) for site in decoder.sites]
        # Below the first site that has an adapter nothing asks for a gradient.
        self._first_block = next(number for number, group in enumerate(self._groups) if group is not None) // 4

    @torch.no_grad()
    def __call__(
        self,
        ids: Int[Tensor, "b t"],
        predicts: Bool[Tensor, "b t"],
        rows: Rows,
        underlay_slots: Int[Tensor, " b"],
        weights: Float[Tensor, " b"],
        *,
        learn: bool = True,
    ) -> Float[Tensor, " b"]:
        """Run right-padded rows forward and backward, or forward alone; return each row's weighted sum of its response tokens' NLL."""
        decoder, blocks = self._decoder, self._decoder.blocks
        cos, sin = decoder.turns(ids.shape[1])
        frozen = self._underlays.of_rows(underlay_slots) if self._underlays else [None] * (4 * len(blocks))
        responses, real = positions_of(predicts, multiple=PAD_TO)
        x = functional.embedding(ids, decoder.embedding)
        inputs: list[Tensor] = []
        kept: list[_Kept | None] = []
        for number, block in enumerate(blocks):
            inputs.append(x)
            chosen = responses if number == len(blocks) - 1 else None
            x, of_block = self._forward(number, block, x, cos, sin, rows, frozen, chosen)
            kept.append(None if not learn or (self._checkpointing and chosen is None) else of_block)
        nll, dx = self._head(x, ids[:, 1:][predicts[:, :-1]], real, weights)
        if not learn:
            return nll
        for number in reversed(range(self._first_block, len(blocks))):
            block, chosen = blocks[number], responses if number == len(blocks) - 1 else None
            of_block = kept.pop() or self._forward(number, block, inputs[number], cos, sin, rows, frozen, chosen)[1]
            where = (responses, real) if chosen is not None else None
            dx = self._backward(block, of_block, dx, cos, sin, where, ids.shape, first=number == self._first_block)
        return nll

    @torch.no_grad()
    def bytes_per_token(self, ids: Int[Tensor, "1 t"]) -> float:
        """Run one row forward and return how much the backward pass keeps of it, for each of its tokens."""
        decoder = self._decoder
        rows = Rows(torch.zeros_like(ids[:, 0]), torch.ones(1, dtype=self._like.dtype, device=ids.device))
        cos, sin = decoder.turns(ids.shape[1])
        x = functional.embedding(ids, decoder.embedding)
        n_bytes = 0
        for number, block in enumerate(decoder.blocks):
            n_bytes += x.nbytes
            x, of_block = self._forward(number, block, x, cos, sin, rows, [None] * (4 * len(decoder.blocks)), None)
            # With checkpoints a block's inside is there once; it is the same size in every block.
            if not self._checkpointing or number == 0:
                n_bytes += of_block.n_bytes
        return n_bytes / ids.shape[1]

    def close(self) -> None:
        """The model itself was never touched."""

    def _sites(self, number: int, block: Block, rows: Rows, frozen: Sequence[Factors | None]) -> tuple[_Site, _Site, _Site, _Site]:
        first = 4 * number
        found = [
            _Site(site, rows, group, _beside(group and group.gather(rows, self._decoder.dtype), under, len(rows.slot)))
            for site, group, under in zip(block.sites, self._groups[first : first + 4], frozen[first : first + 4], strict=True)
        ]
        return found[0], found[1], found[2], found[3]

    def _forward(
        self,
        number: int,
        block: Block,
        x: Float[Tensor, "b t d"],
        cos: Tensor,
        sin: Tensor,
        rows: Rows,
        frozen: Sequence[Factors | None],
        chosen: Int[Tensor, "b s"] | None,
    ) -> tuple[Tensor, _Kept]:
        """Run a block; after its attention for the chosen tokens alone, when some are chosen."""
        decoder = self._decoder
        sites = self._sites(number, block, rows, frozen)
        qkv, out, gate_up, down = sites
        a, unit_in, inverse_in = decoder.norm(x, block.norm_in)
        y, h_qkv = qkv.forward(a)
        q, k, v = (part.detach().requires_grad_() for part in decoder.heads(y, cos, sin))
        with torch.enable_grad():
            attended = decoder.attend(q, k, v)
        o = attended.detach()
        if chosen is not None:
            o, x = _take(o, chosen), _take(x, chosen)
        y, h_out = out.forward(o)
        x = y.add_(x)
        m, unit_mid, inverse_mid = decoder.norm(x, block.norm_mid)
        both, h_gate_up = gate_up.forward(m)
        # Element-wise functions of strided halves cost the CPU twice as much as the copy.
        gate, up = (half.contiguous() for half in both.chunk(2, dim=-1))
        product = functional.silu(gate).mul_(up)
        y, h_down = down.forward(product)
        attention = (q, k, v, attended)
        kept = _Kept(
            sites, a, unit_in, inverse_in, h_qkv, attention, o, h_out, m, unit_mid, inverse_mid, h_gate_up, gate, up, product, h_down
        )
        return y.add_(x), kept

    def _backward(
        self,
        block: Block,
        kept: _Kept,
        dx: Tensor,
        cos: Tensor,
        sin: Tensor,
        chosen: tuple[Int[Tensor, "b s"], Int[Tensor, " n"]] | None,
        shape: torch.Size,
        *,
        first: bool,
    ) -> Tensor:
        """Add the gradients of a block's factors; return the gradient of its input (of the first block, nothing of use)."""
        qkv, out, gate_up, down = kept.sites
        dproduct = _wanted(down.backward(dx, kept.product, kept.h_down))
        dup = functional.silu(kept.gate).mul_(dproduct)
        dgate = torch.ops.aten.silu_backward(dproduct.mul_(kept.up), kept.gate)
        dm = _wanted(gate_up.backward(torch.cat([dgate, dup], dim=-1), kept.m, kept.h_gate_up))
        dx = _norm_backward(dm, block.norm_mid, kept.unit_mid, kept.inverse_mid).add_(dx)
        do = _wanted(out.backward(dx, kept.o, kept.h_out))
        if chosen is not None:
            do, dx = _put_back(do, *chosen, shape), _put_back(dx, *chosen, shape)
        *leaves, attended = kept.attention
        dq, dk, dv = torch.autograd.grad(attended, leaves, do)
        turned_back = rotate(torch.cat([dq, dk], dim=1).transpose(1, 2), cos, -sin)
        dqkv = torch.cat([turned_back, dv.transpose(1, 2)], dim=2).flatten(2)
        da = qkv.backward(dqkv, kept.a, kept.h_qkv, dx=not first)
        return dx if da is None else _norm_backward(da, block.norm_in, kept.unit_in, kept.inverse_in).add_(dx)

    def _head(
        self, x: Float[Tensor, "b s d"], targets: Int[Tensor, " n"], real: Int[Tensor, " n"], weights: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b s d"]]:
        """Return each row's weighted negative log-likelihood and the gradient of the sum with respect to x."""
        decoder = self._decoder
        final, unit, inverse = decoder.norm(x, decoder.norm_out)
        row = real // x.shape[1]
        weight = weights[row]
        hidden, dfinal = final.flatten(0, 1)[real], torch.zeros_like(final)
        found, gradients = [], []
        size = max(1, LOGITS_AT_ONCE // len(decoder.head))
        for at_once in zip(hidden.split(size), targets.split(size), weight.split(size), strict=True):
            nll, gradient = _cross_entropy(decoder.head, *at_once)
            found.append(nll)
            gradients.append(gradient)
        dfinal.view(-1, dfinal.shape[-1])[real] = torch.cat(gradients)
        nll = torch.cat(found) * weight
        per_row = torch.zeros(len(x), dtype=torch.float64, device=x.device).index_add_(0, row, nll.double())
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


def _beside(trained: Factors | None, frozen: Factors | None, n_rows: int) -> Factors | None:
    """Return trained and frozen factors as one: the ranks of the second after those of the first."""
    if frozen is not None:
        a, b = (factor.expand(n_rows, -1, -1) for factor in frozen)
        return (a, b) if trained is None else (torch.cat([trained[0], a], dim=1), torch.cat([trained[1], b], dim=2))
    return trained


def _take(x: Float[Tensor, "b t d"], chosen: Int[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
    return x.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))


def _put_back(x: Float[Tensor, "b s d"], chosen: Int[Tensor, "b s"], real: Int[Tensor, " n"], shape: torch.Size) -> Float[Tensor, "b t d"]:
    """Return zeros with the chosen tokens' rows in their places."""
    whole = x.new_zeros(shape[0], shape[1], x.shape[-1])
    flat = (chosen + torch.arange(len(x), device=x.device)[:, None] * shape[1]).flatten()[real]
    whole.view(-1, x.shape[-1])[flat] = x.flatten(0, 1)[real]
    return whole


def _wanted(gradient: Tensor | None) -> Tensor:
    assert gradient is not None, "a gradient that was asked for was not computed"
    return gradient
