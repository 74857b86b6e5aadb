"""LoRA layers for K adapters at once: the forward and backward pass, by hand, over one frozen base.

legend   k slot, b row of the batch (one dialogue of one adapter), t token, r rank, R = g * r for the g layers of a group

Linear layers that read the same tensor (q, k, v; gate, up) form a group: one product with their weights W side by side and one
with their A side by side. For row b, answered by slot k = slot[b], with scale s = alpha / r and dropout mask m,

    h_b = (x_b * m_b) A_k^T            A: [k, R, d_in]
    y_b = x_b W^T + s_k h_b B_k^T      B: [k, d_out, r] for each layer of the group

and backward, given dy_b,

    u_b   = s_k dy_b B_k               dA_k += u_b^T (x_b * m_b)
    dB_k += s_k dy_b^T h_b             dx_b  = dy_b W + (u_b A_k) * m_b

Rows of different slots never meet, so K adapters trained together are K adapters trained alone. Parameters and gradients of slot k
are row k of two matrices [K, n]; A and B are views of them, and the backward pass adds straight into the gradient's rows.
Source: Hu et al. 2021, LoRA (arXiv 2106.09685); batching over adapters as in S-LoRA (arXiv 2311.03285), here for training.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clusterlora.errors import BadSettings
from clusterlora.training.dropout import DropoutTape
from clusterlora.training.job import initial_a


@dataclass(slots=True)
class Rows:
    """Which adapter each row of the current batch belongs to."""

    slot: Int[Tensor, " b"]
    scale: Float[Tensor, "b 1 1"]
    dropout: DropoutTape | None = None


class Group:
    """Linear layers that read the same tensor, and the slots' factors for them."""

    def __init__(self, names: Sequence[str], layers: Sequence[nn.Linear], *, rank: int) -> None:
        self.names = tuple(names)
        self.rank = rank
        self.d_in = layers[0].in_features
        self.d_outs = tuple(layer.out_features for layer in layers)
        self.number = 0
        with torch.no_grad():
            self.weight = torch.cat([layer.weight for layer in layers]) if len(layers) > 1 else layers[0].weight
            self.bias = torch.cat([_bias(layer) for layer in layers]) if any(layer.bias is not None for layer in layers) else None
        if len(layers) > 1:  # the layers keep no second copy of their weights
            for layer, part in zip(layers, self.weight.split(self.d_outs), strict=True):
                layer.weight = nn.Parameter(part, requires_grad=False)
        self.a: Tensor
        self.bs: list[Tensor]
        self.grad_a: Tensor
        self.grad_bs: list[Tensor]

    @property
    def n_parameters(self) -> int:
        """Parameters of one slot in this group."""
        return self.rank * (len(self.names) * self.d_in + sum(self.d_outs))

    def views(self, matrix: Float[Tensor, "k n"]) -> tuple[Float[Tensor, "k R d_in"], list[Tensor]]:
        """Return A and the B of each layer as views of this group's columns of a [K, n] matrix."""
        n_slots, columns = matrix.shape[0], len(self.names) * self.rank * self.d_in
        a = matrix[:, :columns].view(n_slots, -1, self.d_in)
        bs = []
        for d_out in self.d_outs:
            bs.append(matrix[:, columns : columns + d_out * self.rank].view(n_slots, d_out, self.rank))
            columns += d_out * self.rank
        return a, bs


def _bias(layer: nn.Linear) -> Tensor:
    return layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)


class _GroupProduct(torch.autograd.Function):
    """The equations at the top of this file for one group."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "b t d_in"], _gradient_wanted: Tensor, group: Group, rows: Rows) -> tuple[Tensor, ...]:
        a = group.a.index_select(0, rows.slot).to(x.dtype)
        bs = [b.index_select(0, rows.slot).to(x.dtype) for b in group.bs]
        mask = rows.dropout.mask(group.number, x) if rows.dropout is not None else None
        h = torch.bmm(x if mask is None else x * mask, a.transpose(1, 2)).mul_(rows.scale.to(x.dtype))
        ys = nn.functional.linear(x, group.weight, group.bias).split(group.d_outs, dim=-1)
        ys = tuple(y + torch.bmm(part, b.transpose(1, 2)) for y, part, b in zip(ys, h.split(group.rank, dim=-1), bs, strict=True))
        ctx.save_for_backward(x, h, a, *bs)
        ctx.mask, ctx.group, ctx.rows = mask, group, rows
        return ys

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, h, a, *bs = ctx.saved_tensors
        group, slot = ctx.group, ctx.rows.slot
        us = []
        for dy, part, b, grad_b in zip(dys, h.split(group.rank, dim=-1), bs, group.grad_bs, strict=True):
            grad_b.index_add_(0, slot, torch.bmm(dy.transpose(1, 2), part).to(grad_b.dtype))
            us.append(torch.bmm(dy, b))
        u = torch.cat(us, dim=-1).mul_(ctx.rows.scale.to(x.dtype))
        x_dropped = x if ctx.mask is None else x * ctx.mask
        group.grad_a.index_add_(0, slot, torch.bmm(u.transpose(1, 2), x_dropped).to(group.grad_a.dtype))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        through_adapter = torch.bmm(u, a)
        dx = torch.cat(dys, dim=-1) @ group.weight
        return (dx.add_(through_adapter) if ctx.mask is None else dx.addcmul_(through_adapter, ctx.mask)), None, None, None


class StackedLora:
    """K slots of LoRA on the targeted linear layers of a frozen model, as two matrices [K, n]: parameters and gradients."""

    def __init__(self, model: nn.Module, target_modules: Sequence[str], *, n_slots: int, rank: int, probe: Int[Tensor, "1 t"]) -> None:
        """Put the layers into `model`; `close` takes them out again.

        Args:
            target_modules: ends of the names of the linear layers to adapt.
            rank: the largest rank of any slot; smaller ones are padded with zeros, which stay exactly zero.
            probe: token ids to run once, to see which layers read the same tensor.

        Raises:
            BadSettings: no layer matches, or one that matches is not a plain Linear.
        """
        layers = targeted_layers(model, target_modules)
        self.rank = rank
        self._layers = layers
        self._rows: Rows | None = None
        self.groups = [Group(names, [layers[n] for n in names], rank=rank) for names in _read_together(model, layers, probe)]
        device = next(model.parameters()).device
        # The frozen base may be float64 in tests; adapters are at least float32 whatever the base is.
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        n = sum(group.n_parameters for group in self.groups)
        self.parameters = torch.zeros(n_slots, n, device=device, dtype=dtype)
        self.gradients = torch.zeros_like(self.parameters)
        for number, (group, values, gradients) in enumerate(
            zip(self.groups, self._by_group(self.parameters), self._by_group(self.gradients), strict=True)
        ):
            group.number = number
            group.a, group.bs = group.views(values)
            group.grad_a, group.grad_bs = group.views(gradients)
            _intercept(group, [layers[name] for name in group.names], self)
        # Without an input that asks for a gradient autograd would skip the first layer, whose input is a frozen embedding.
        self.gradient_wanted = torch.zeros((), requires_grad=True)

    def initial(self, *, rank: int, seed: int) -> dict[str, Tensor]:
        """Return what every adapter of this rank and seed starts from: A drawn once for all, B zero."""
        tensors = {}
        for group in self.groups:
            for name, d_out in zip(group.names, group.d_outs, strict=True):
                tensors[f"{name}.lora_A.weight"] = initial_a(name, rank=rank, d_in=group.d_in, seed=seed)
                tensors[f"{name}.lora_B.weight"] = torch.zeros(d_out, rank)
        return tensors

    def columns_of_b(self) -> Int[Tensor, " column"]:
        """Return the columns of the [K, n] matrices that hold the B of every layer."""
        is_b = torch.ones(self.parameters.shape[1], dtype=torch.bool)
        for group, columns in zip(self.groups, is_b.split([group.n_parameters for group in self.groups]), strict=True):
            columns[: len(group.names) * group.rank * group.d_in] = False
        return is_b.nonzero()[:, 0]

    def _by_group(self, matrix: Float[Tensor, "k n"]) -> Sequence[Tensor]:
        return matrix.split([group.n_parameters for group in self.groups], dim=1)

    @contextmanager
    def rows(self, rows: Rows) -> Iterator[None]:
        """Inside the block, row b of every batch belongs to slot `rows.slot[b]`."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    @property
    def current_rows(self) -> Rows:
        """Whose the rows of the batch under way are."""
        assert self._rows is not None, "a model with stacked LoRA was run outside `rows`"
        return self._rows

    def read(self, slot: int, matrix: Float[Tensor, "k n"], *, rank: int) -> dict[str, Tensor]:
        """Return a slot's row of a [K, n] matrix as tensors named `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, padding removed."""
        tensors = {}
        for group, columns in zip(self.groups, self._by_group(matrix), strict=True):
            a, bs = group.views(columns)
            for name, part, b in zip(group.names, a[slot].split(self.rank), bs, strict=True):
                tensors[f"{name}.lora_A.weight"] = part[:rank].clone()
                tensors[f"{name}.lora_B.weight"] = b[slot, :, :rank].clone()
        return tensors

    def write(self, slot: int, matrix: Float[Tensor, "k n"], tensors: Mapping[str, Tensor]) -> None:
        """Set a slot's row of a [K, n] matrix from tensors named as `read` names them, zeros elsewhere."""
        matrix[slot].zero_()
        for group, columns in zip(self.groups, self._by_group(matrix), strict=True):
            a, bs = group.views(columns)
            for name, part, b in zip(group.names, a[slot].split(self.rank), bs, strict=True):
                factor_a, factor_b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
                part[: factor_a.shape[0]] = factor_a
                b[slot, :, : factor_b.shape[1]] = factor_b

    def close(self) -> None:
        """Give the model its own forward pass back."""
        for layer in self._layers.values():
            layer.__dict__.pop("forward", None)


def targeted_layers(model: nn.Module, target_modules: Sequence[str]) -> dict[str, nn.Linear]:
    """Return the layers whose name ends in one of `target_modules`, in the order of the model.

    Raises:
        BadSettings: none matches, or one is not a plain Linear.
    """
    found: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in target_modules:
            if type(module) is not nn.Linear:
                raise BadSettings(f"layer {name} is a {type(module).__name__}, not a Linear; take it out of recipe.target_modules")
            found[name] = module
    if not found:
        raise BadSettings(f"no layer of the base model is named {' or '.join(target_modules)}; set recipe.target_modules to names it has")
    return found


def _read_together(model: nn.Module, layers: Mapping[str, nn.Linear], probe: Tensor) -> list[list[str]]:
    """Return the layers in the order they run, those that read the same tensor one after another together."""
    seen: list[tuple[str, Tensor]] = []

    def remember(name: str, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Keeping the tensors keeps them apart: a freed one could lend its place in memory to the next.
        seen.append((name, inputs[0]))

    hooks = [layer.register_forward_pre_hook(partial(remember, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            model(input_ids=probe, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    groups: list[tuple[Tensor, list[str]]] = []
    for name, tensor in seen:
        if groups and groups[-1][0] is tensor:
            groups[-1][1].append(name)
        else:
            groups.append((tensor, [name]))
    return [names for _, names in groups]


def _intercept(group: Group, layers: Sequence[nn.Linear], stack: StackedLora) -> None:
    """Let the group's first layer compute all of the group; the others hand out what it left for them."""
    waiting: dict[str, tuple[Tensor, Tensor]] = {}

    def lead(input: Tensor) -> Tensor:  # noqa: A002  (Linear.forward names it so)
        first, *others = _GroupProduct.apply(input, stack.gradient_wanted, group, stack.current_rows)  # pyright: ignore[reportGeneralTypeIssues]
        waiting.update({name: (input, y) for name, y in zip(group.names[1:], others, strict=True)})
        return first

    def follow(name: str, input: Tensor) -> Tensor:  # noqa: A002
        read, y = waiting.pop(name)
        assert read is input, f"{name} read another tensor than {group.names[0]} did"
        return y

    layers[0].forward = lead
    for name, layer in zip(group.names[1:], layers[1:], strict=True):
        layer.forward = partial(follow, name)
