"""Forward and backward pass of stacked adapters through an unmodified transformers model, for every architecture without a decoder.

The targeted linear layers are intercepted: one autograd function computes the base product and the updates of layers that read the same
tensor, by the equations of `engine.stacked_lora`, and adds the factors' gradients to the slots' rows directly.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from clusterlora.engine.base import BaseModel
from clusterlora.engine.batch import RowSlots, TrainingBatch
from clusterlora.engine.families.decoder import PAD_TO
from clusterlora.engine.fused_linear import input_gradient
from clusterlora.engine.low_rank_update import LowRankUpdate
from clusterlora.engine.packing import Padding, single_segment
from clusterlora.engine.placement import own_forward
from clusterlora.engine.stacked import StackedModel, logits_only_at, refuse_routed
from clusterlora.engine.stacked_lora import FusedLora, FusedSpec, StackedLora
from clusterlora.engine.stacked_prefix import StackedPrefix
from clusterlora.models.linear_layers import LinearLayer, linear_layer


class TransformersBackend:
    """The `Backend` of stacked LoRA, or of stacked prefixes, on a transformers model."""

    def __init__(self, base: BaseModel, stack: StackedLora | StackedPrefix, frozen_adapters: StackedModel | None) -> None:
        """Prepare for batches; `frozen_adapters` are active under the trained ones."""
        self.padding = Padding(PAD_TO, uniform=True)
        self.reentrant = False
        self._model: Any = base.model
        self._pad_id = base.pad_id
        self._stack = stack
        self._frozen_adapters = frozen_adapters
        self._intercepted = _InterceptedLayers(base.model, stack) if isinstance(stack, StackedLora) else None
        self._head_is_stacked = (frozen_adapters is not None and frozen_adapters.has_head) or (
            self._intercepted is not None and self._intercepted.includes(self._model.get_output_embeddings())
        )

    def __call__(self, batch: TrainingBatch, *, backward: bool = True) -> Float[Tensor, " b"]:
        """See `Backend`."""
        parts = (*batch.rows.padded(pad_id=self._pad_id, multiple=PAD_TO), batch.rows.targets, batch.frozen_slots, batch.weights)
        ids, predicts, targets, frozen_slots, weights = (part.to(self._model.device) for part in parts)
        with ExitStack() as contexts:
            slots = RowSlots(batch.slots.slot.to(ids.device), batch.slots.input_scale.to(ids.device))
            self._enter(contexts, slots, frozen_slots, n_tokens=ids.shape[1])
            contexts.enter_context(torch.set_grad_enabled(backward))
            contexts.enter_context(logits_only_at(self._model, predicts, head_is_stacked=self._head_is_stacked))
            # Right padding under causal attention needs no mask: no real token attends to padding.
            logits = self._model(input_ids=ids, use_cache=False).logits.to(ids.device)
        nll = functional.cross_entropy(logits.to(self._stack.parameters.dtype), targets, reduction="none")
        row = predicts.nonzero()[:, 0]
        weighted = nll * weights.to(nll.dtype)[row]
        if backward:
            weighted.sum().backward()
        return torch.zeros(len(ids), dtype=torch.float64, device=ids.device).index_add_(0, row, weighted.detach().double())

    def prepare(self, batch: TrainingBatch, *, backward: bool) -> None:
        """See `Backend`: nothing."""

    def bytes_per_token(self, ids: Int[Tensor, " t"]) -> float:
        """See `Backend`."""
        bytes_by_storage: dict[int, int] = {}

        def record(tensor: Tensor) -> Tensor:
            bytes_by_storage[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        ids = ids[None].to(self._model.device)
        parameters = {parameter.untyped_storage().data_ptr() for parameter in self._model.parameters()}
        slot = torch.zeros_like(ids[:, 0])
        with ExitStack() as contexts:
            self._enter(
                contexts, RowSlots(slot, torch.ones_like(slot[:, None], dtype=self._stack.parameters.dtype)), slot, n_tokens=ids.shape[1]
            )
            contexts.enter_context(torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor))
            self._model(input_ids=ids, use_cache=False)
        return sum(n_bytes for storage, n_bytes in bytes_by_storage.items() if storage not in parameters) / ids.shape[1]

    def _enter(self, contexts: ExitStack, rows: RowSlots, frozen_slots: Int[Tensor, " b"], *, n_tokens: int) -> None:
        contexts.enter_context(self._intercepted.rows(rows, n_tokens) if self._intercepted else self._stack.rows(rows))  # pyrefly: ignore[missing-attribute]
        if self._frozen_adapters:
            contexts.enter_context(self._frozen_adapters.rows(frozen_slots))

    @contextmanager
    def model_restored(self) -> Generator[None]:
        """See `Backend`."""
        with ExitStack() as contexts:
            for part in (self._intercepted, self._frozen_adapters):
                if part is not None:
                    contexts.enter_context(part.removed())
            yield

    def close(self) -> None:
        """See `Backend`."""
        if self._intercepted:
            self._intercepted.close()
        if self._frozen_adapters:
            self._frozen_adapters.close()


class _InterceptedLayers:
    """The targeted layers of a model, whose forward methods are replaced to add the updates."""

    def __init__(self, model: nn.Module, lora: StackedLora) -> None:
        self._layers = [[model.get_submodule(name) for name in fused.spec.names] for fused in lora.loras]
        # Autograd would skip the first layer, whose input is a frozen embedding, without an input that requires a gradient.
        self._requires_grad = torch.zeros((), requires_grad=True)
        self._rows: RowSlots | None = None
        self._n_tokens = 0
        self._forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = []
        self._before: list[tuple[nn.Module, str, Callable[..., Tensor] | None]] = []
        for fused, layers in zip(lora.loras, self._layers, strict=True):
            self._intercept(fused, layers)
        self._replace()

    def includes(self, layer: nn.Module | None) -> bool:
        """Return whether a layer is one of these."""
        return any(layer is other for layers in self._layers for other in layers)

    @contextmanager
    def rows(self, rows: RowSlots, n_tokens: int) -> Generator[None]:
        """Use slot `rows.slot[b]` for row b of every batch inside the block, whose rows are `n_tokens` long."""
        self._rows, self._n_tokens = rows, n_tokens
        try:
            yield
        finally:
            self._rows = None

    def _intercept(self, lora: FusedLora, layers: Sequence[Any]) -> None:
        """Let the first layer compute the outputs of all of them; the others return what it computed."""
        outputs: dict[str, tuple[Tensor, Tensor]] = {}

        def first_forward(input: Tensor) -> Tensor:  # noqa: A002  (Linear.forward names it so)
            assert self._rows is not None, "a model with stacked LoRA was run outside `rows`"
            refuse_routed(lora.spec.names[0], input, n_rows=len(self._rows.slot), n_tokens=self._n_tokens)
            first, *others = _FusedProduct.apply(input, self._requires_grad, lora, self._rows, layers)
            outputs.update({name: (input, output) for name, output in zip(lora.spec.names[1:], others, strict=True)})
            return first

        def other_forward(name: str, input: Tensor) -> Tensor:  # noqa: A002
            first_input, output = outputs.pop(name)
            assert first_input is input, f"{name} read another tensor than {lora.spec.names[0]} did"
            return output

        others = (partial(other_forward, name) for name in lora.spec.names[1:])
        self._forwards += zip(layers, (first_forward, *others), strict=True)

    @contextmanager
    def removed(self) -> Generator[None]:
        """Restore the layers' forward methods inside the block."""
        self.close()
        try:
            yield
        finally:
            self._replace()

    def _replace(self) -> None:
        for layer, forward in self._forwards:
            # What accelerate does before a layer of a spread model, it still does.
            attribute = own_forward(layer)
            self._before.append((layer, attribute, layer.__dict__.get(attribute)))
            setattr(layer, attribute, forward)

    def close(self) -> None:
        """Restore the layers' forward methods."""
        for layer, attribute, forward in self._before:
            if forward is None:
                layer.__dict__.pop(attribute, None)
            else:
                setattr(layer, attribute, forward)
        self._before.clear()


class _FusedProduct(torch.autograd.Function):
    """The equations of `engine.stacked_lora` for one fused LoRA."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*tokens d_in"], _requires_grad: Tensor, lora: FusedLora, rows: RowSlots, modules: Sequence[nn.Module]
    ) -> tuple[Float[Tensor, "*tokens _D"], ...]:
        flat, n_rows = x.reshape(-1, x.shape[-1]), len(rows.slot)
        segments, update = single_segment(n_rows, len(flat) // n_rows), lora.gather(rows, x.dtype, x.device)
        layers = [layer for layer in map(linear_layer, modules) if layer is not None]
        ys = [functional.linear(x, layer.weight(x.dtype), layer.bias) for layer in layers]
        (h,) = update.forward(flat, [y.view(len(flat), -1) for y in ys], segments)
        ctx.save_for_backward(flat, h, *update.factors)
        ctx.lora, ctx.rows, ctx.segments, ctx.layers = lora, rows, segments, layers
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, h, a, *bs = ctx.saved_tensors
        update, shape = LowRankUpdate(a, tuple(bs)), dys[0].shape[:-1]
        flat_dys = [dy.reshape(-1, dy.shape[-1]) for dy in dys]
        dx = input_gradient(flat_dys, (layer.weight(x.dtype) for layer in ctx.layers)) if ctx.needs_input_grad[0] else None
        gradient = update.empty_like()
        update.backward(x, [h], flat_dys, dx, ctx.segments, gradient)
        ctx.lora.add_gradient(ctx.rows, gradient)
        return dx if dx is None else dx.view(*shape, -1), None, None, None, None


def fused_specs(model: nn.Module, layers: Mapping[str, LinearLayer], probe: Int[Tensor, "1 t"]) -> list[FusedSpec]:
    """Return the specs of these layers in execution order; consecutive layers that read the same tensor share one.

    Args:
        probe: token ids to run once, to see which layers read the same tensor.
    """
    return [
        FusedSpec(tuple(names), layers[names[0]].d_in, tuple(layers[name].d_out for name in names))
        for names in _grouped_by_input(model, layers, probe)
    ]


def _grouped_by_input(model: nn.Module, layers: Mapping[str, LinearLayer], probe: Tensor) -> list[list[str]]:
    inputs: list[tuple[str, Tensor]] = []

    def record(name: str, _layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        # Holding the tensors keeps their identities distinct: the memory of a freed one could be reused.
        inputs.append((name, arguments[0]))

    run: Callable[..., Any] = model
    hooks = [layer.module.register_forward_pre_hook(partial(record, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            run(input_ids=probe, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    groups: list[tuple[Tensor, list[str]]] = []
    for name, tensor in inputs:
        if groups and groups[-1][0] is tensor:
            groups[-1][1].append(name)
        else:
            groups.append((tensor, [name]))
    return [names for _, names in groups]
