"""Forward and backward pass of stacked adapters through a transformers model as it is, for every architecture that is not written out.

The targeted linear layers are intercepted: one autograd function computes a group's base product and its updates, by the equations of
`training.stacked_lora`, and adds the factors' gradients straight to the slots' rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from clusterlora.models.decoder import PAD_TO
from clusterlora.models.low_rank_update import Update
from clusterlora.models.packing import Padding, whole
from clusterlora.models.stacked import StackedModel, logits_only_at
from clusterlora.training.stacked_lora import Group, Place, Rows, StackedLora, through
from clusterlora.training.stacked_prefix import StackedPrefix


class TransformersBackend:
    """Adds the gradients of one batch to stacked LoRA, or stacked prefixes, on a transformers model. `close` gives the model back."""

    def __init__(self, model: Any, stack: StackedLora | StackedPrefix, frozen_adapters: StackedModel | None) -> None:
        """Prepare for batches; `frozen_adapters` are frozen adapters that are active under the trained ones."""
        self.padding = Padding(PAD_TO, alike=True)
        self.reentrant = False
        self._model = model
        self._stack = stack
        self._frozen_adapters = frozen_adapters
        self._intercepted = _Intercepted(model, stack) if isinstance(stack, StackedLora) else None

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
        ids, predicts, frozen_slots, weights = (part.to(self._model.device) for part in (ids, predicts, frozen_slots, weights))
        with ExitStack() as within:
            self._enter(within, rows, frozen_slots)
            within.enter_context(torch.set_grad_enabled(learn))
            within.enter_context(logits_only_at(self._model, predicts))
            # Right padding under causal attention needs no mask: no real token sees a padded one.
            logits = self._model(input_ids=ids, use_cache=False).logits
        nll = functional.cross_entropy(logits.to(self._stack.parameters.dtype), ids[:, 1:][predicts[:, :-1]], reduction="none")
        row = predicts.nonzero()[:, 0]
        share = nll * weights.to(nll.dtype)[row]
        if learn:
            share.sum().backward()
        return torch.zeros(len(ids), dtype=torch.float64, device=ids.device).index_add_(0, row, share.detach().double())

    def bytes_per_token(self, ids: Int[Tensor, "1 t"]) -> float:
        """Run one row forward and return how much autograd keeps of it, for each of its tokens."""
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        ids = ids.to(self._model.device)
        frozen = {parameter.untyped_storage().data_ptr() for parameter in self._model.parameters()}
        row = torch.zeros_like(ids[:, 0])
        with ExitStack() as within:
            self._enter(within, Rows(row, torch.ones_like(row[:, None], dtype=self._stack.parameters.dtype)), row)
            within.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
            self._model(input_ids=ids, use_cache=False)
        return sum(n_bytes for storage, n_bytes in kept.items() if storage not in frozen) / ids.shape[1]

    def _enter(self, within: ExitStack, rows: Rows, frozen_slots: Tensor) -> None:
        within.enter_context(self._intercepted.rows(rows) if self._intercepted else self._stack.rows(rows))  # pyright: ignore[reportAttributeAccessIssue]
        if self._frozen_adapters:
            within.enter_context(self._frozen_adapters.rows(frozen_slots))

    def close(self) -> None:
        """Give the model its own forward pass back."""
        if self._intercepted:
            self._intercepted.close()
        if self._frozen_adapters:
            self._frozen_adapters.close()


class _Intercepted:
    """The targeted layers of a model, computing their group's updates as well."""

    def __init__(self, model: nn.Module, lora: StackedLora) -> None:
        self._layers = [[model.get_submodule(name) for name in group.place.names] for group in lora.groups]
        # Without an input that asks for a gradient autograd would skip the first layer, whose input is a frozen embedding.
        self.gradient_wanted = torch.zeros((), requires_grad=True)
        self._rows: Rows | None = None
        for group, layers in zip(lora.groups, self._layers, strict=True):
            self._intercept(group, layers)

    @contextmanager
    def rows(self, rows: Rows) -> Iterator[None]:
        """Inside the block, row b of every batch belongs to slot `rows.slot[b]`."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def _intercept(self, group: Group, layers: Sequence[Any]) -> None:
        """Let the group's first layer compute all of the group; the others hand out what it left for them."""
        waiting: dict[str, tuple[Tensor, Tensor]] = {}

        def lead(input: Tensor) -> Tensor:  # noqa: A002  (Linear.forward names it so)
            assert self._rows is not None, "a model with stacked LoRA was run outside `rows`"
            first, *others = _GroupProduct.apply(input, self.gradient_wanted, group, self._rows, layers)  # pyright: ignore[reportGeneralTypeIssues]
            waiting.update({name: (input, part) for name, part in zip(group.place.names[1:], others, strict=True)})
            return first

        def follow(name: str, input: Tensor) -> Tensor:  # noqa: A002
            read, part = waiting.pop(name)
            assert read is input, f"{name} read another tensor than {group.place.names[0]} did"
            return part

        layers[0].forward = lead
        for name, layer in zip(group.place.names[1:], layers[1:], strict=True):
            layer.forward = partial(follow, name)

    def close(self) -> None:
        for layer in (layer for layers in self._layers for layer in layers):
            layer.__dict__.pop("forward", None)


class _GroupProduct(torch.autograd.Function):
    """The equations of `training.stacked_lora` for one group."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "b t d_in"], _wanted: Tensor, group: Group, rows: Rows, layers: Sequence[nn.Linear]
    ) -> tuple[Float[Tensor, "b t _D"], ...]:
        runs, flat, update = whole(*x.shape[:2]), x.flatten(0, 1), group.gather(rows, x.dtype)
        ys = [functional.linear(flat, layer.weight, layer.bias) for layer in layers]
        (h,) = update.forward(flat, ys, runs)
        ctx.save_for_backward(flat, h, *update.factors)
        ctx.group, ctx.rows, ctx.runs, ctx.weights = group, rows, runs, [layer.weight for layer in layers]
        return tuple(y.unflatten(0, x.shape[:2]) for y in ys)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, h, a, *bs = ctx.saved_tensors
        update, shape = Update(a, tuple(bs)), dys[0].shape[:2]
        given = [dy.flatten(0, 1) for dy in dys]
        dx = through(given, ctx.weights) if ctx.needs_input_grad[0] else None
        gradient = update.empty_like()
        update.backward(x, [h], given, dx, ctx.runs, gradient)
        ctx.group.add(ctx.rows, gradient)
        return dx if dx is None else dx.unflatten(0, shape), None, None, None, None


def places(model: nn.Module, layers: Mapping[str, nn.Linear], probe: Int[Tensor, "1 t"]) -> list[Place]:
    """Return where the layers are, in the order they run; those that read the same tensor one after another are one place.

    Args:
        probe: token ids to run once, to see which layers read the same tensor.
    """
    found = []
    for names in _read_together(model, layers, probe):
        found.append(Place(tuple(names), layers[names[0]].in_features, tuple(layers[name].out_features for name in names)))
    return found


def _read_together(model: nn.Module, layers: Mapping[str, nn.Linear], probe: Tensor) -> list[list[str]]:
    seen: list[tuple[str, Tensor]] = []

    def remember(name: str, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Keeping the tensors keeps them apart: a freed one could lend its place in memory to the next.
        seen.append((name, inputs[0]))

    run: Callable[..., Any] = model
    hooks = [layer.register_forward_pre_hook(partial(remember, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            run(input_ids=probe, use_cache=False)
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
