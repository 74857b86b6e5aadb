"""LoRA for K adapters at once over one frozen base: their parameters and gradients, and the factors that a batch needs of them.

legend   k slot, b row of the batch (one dialogue of one adapter), r rank, R = g * r for the g layers of a fused LoRA, D outputs, N tokens

Linear layers that read the same tensor (q, k, v; gate, up) share a fused LoRA: their A are stacked, every B is separate. For row b with
slot k = slot[b], scale s = alpha / r and dropout mask m folded into A (by kernels when they read it, else in a copy),

    A_b = s A_k * m_b         dA_k += s m_b * dA_b      dB_k += dB_b

with the products of `engine.low_rank_update` for each row. Rows of different slots never interact, so K adapters trained together equal K
adapters trained alone. Parameters and gradients of slot k are row k of two matrices [K, n]; A and B^T are views of them, and the
backward pass accumulates into the gradient's rows directly.
Source: Hu et al. 2021, LoRA (arXiv 2106.09685); batching over adapters as in S-LoRA (arXiv 2311.03285), here for training.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from clusterlora.engine.batch import RowSlots
from clusterlora.engine.job import initial_a
from clusterlora.engine.low_rank_update import LowRankUpdate
from clusterlora.engine.packing import Segment
from clusterlora.errors import BadSettings
from clusterlora.models.linear_layers import LinearLayer, linear_layer


@dataclass(frozen=True, slots=True)
class FusedSpec:
    """The layers of a fused LoRA: names, number of inputs, and number of outputs of each."""

    names: tuple[str, ...]
    d_in: int
    d_outs: tuple[int, ...]


class FusedLora:
    """The factors of all slots for linear layers that read the same tensor."""

    def __init__(self, spec: FusedSpec, *, rank: int, first_feature: int) -> None:
        """Describe the layout; `StackedLora` assigns the views.

        Args:
            first_feature: column of `RowSlots.input_scale` at which these layers' inputs start.
        """
        self.spec = spec
        self.rank = rank
        self.first_feature = first_feature
        self.a: Tensor
        self.bs: list[Tensor]
        self.grad_a: Tensor
        self.grad_bs: list[Tensor]

    @property
    def n_parameters(self) -> int:
        """Parameters of one slot."""
        return self.rank * (len(self.spec.names) * self.spec.d_in + sum(self.spec.d_outs))

    @property
    def n_parameters_of_a(self) -> int:
        """Parameters of one slot's A."""
        return self.rank * len(self.spec.names) * self.spec.d_in

    def views(self, matrix: Shaped[Tensor, "k n"]) -> tuple[Shaped[Tensor, "k R d_in"], list[Shaped[Tensor, "k _r _D"]]]:
        """Return A and the transposed B of each layer as views of these layers' columns of a [K, n] matrix."""
        n_slots = matrix.shape[0]
        a, *bs = matrix.split([self.n_parameters_of_a, *(self.rank * d_out for d_out in self.spec.d_outs)], dim=1)
        return a.view(n_slots, -1, self.spec.d_in), [b.view(n_slots, self.rank, -1) for b in bs]

    def own_inputs(self, input_scale: Float[Tensor, "n feature"]) -> Float[Tensor, "n d_in"]:
        """Return the columns of an input scale that belong to these layers' inputs; a single column applies to all inputs."""
        return input_scale if input_scale.shape[1] == 1 else input_scale[:, self.first_feature : self.first_feature + self.spec.d_in]

    def gather(self, rows: RowSlots, dtype: torch.dtype, device: torch.device | None = None) -> LowRankUpdate:
        """Return a copy of each row's factors, its input scale multiplied into A; on a device of their layer's where it is another one."""
        a = self.a.index_select(0, rows.slot).mul_(self.own_inputs(rows.input_scale)[:, None]).to(device=device, dtype=dtype)
        return LowRankUpdate(a, tuple(b.index_select(0, rows.slot).to(device=device, dtype=dtype) for b in self.bs))

    def add_gradient(self, rows: RowSlots, gradient: LowRankUpdate) -> None:
        """Add the gradients of the factors that `gather` returned to those of the slots."""
        self.grad_a.index_add_(0, rows.slot, gradient.a.to(self.grad_a).mul_(self.own_inputs(rows.input_scale)[:, None]))
        for grad_b, db in zip(self.grad_bs, gradient.bs, strict=True):
            grad_b.index_add_(0, rows.slot, db.to(grad_b))


class GatheredLora:
    """A fused LoRA for a batch whose rows have different slots: each row has a copy of its slot's factors."""

    def __init__(self, lora: FusedLora, rows: RowSlots, dtype: torch.dtype) -> None:
        self._lora = lora
        self._rows = rows
        self._update = lora.gather(rows, dtype)

    def forward(self, x: Float[Tensor, "N d_in"], ys: Sequence[Float[Tensor, "N _D"]], segments: Sequence[Segment]) -> list[Tensor]:
        """Add the updates to the layers' outputs `ys`; return the activations that `backward` takes."""
        return self._update.forward(x, ys, segments)

    def backward(
        self,
        x: Float[Tensor, "N d_in"],
        saved: Sequence[Tensor],
        dys: Sequence[Float[Tensor, "N _D"]],
        dx: Float[Tensor, "N d_in"] | None,
        segments: Sequence[Segment],
    ) -> None:
        """Add to the gradients of the slots' factors and, unless it is None, to the gradient of x."""
        gradient = self._update.empty_like()
        self._update.backward(x, saved, dys, dx, segments, gradient)
        self._lora.add_gradient(self._rows, gradient)

    @property
    def n_bytes(self) -> int:
        """Bytes of the gathered factors."""
        return self._update.n_bytes


class StackedLora:
    """K slots of LoRA on the targeted linear layers of a frozen model, as two matrices [K, n]: parameters and gradients."""

    def __init__(self, model: nn.Module, specs: Sequence[FusedSpec], *, n_slots: int, rank: int) -> None:
        """Allocate zeros.

        Args:
            rank: the largest rank of any slot; smaller ranks are padded with zeros, which stay exactly zero.
        """
        self.rank = rank
        self.loras: list[FusedLora] = []
        self.n_features = 0
        self._initial: dict[tuple[int, int], dict[str, Tensor]] = {}
        self._order: dict[int, tuple[Tensor, dict[str, tuple[int, ...]]]] = {}
        for spec in specs:
            self.loras.append(FusedLora(spec, rank=rank, first_feature=self.n_features))
            self.n_features += spec.d_in
        like = next(model.parameters())
        # Adapters are at least float32 whatever the base is; a base in float64 (tests) has float64 adapters.
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.parameters = torch.zeros(n_slots, sum(lora.n_parameters for lora in self.loras), device=like.device, dtype=dtype)
        self.gradients = torch.zeros_like(self.parameters)
        for lora, values, gradients in zip(self.loras, self._split(self.parameters), self._split(self.gradients), strict=True):
            lora.a, lora.bs = lora.views(values)
            lora.grad_a, lora.grad_bs = lora.views(gradients)

    def updates(self, matrix: Float[Tensor, "k n"]) -> list[LowRankUpdate]:
        """Return each fused LoRA's part of a [K, n] matrix as views."""
        views = (lora.views(columns) for lora, columns in zip(self.loras, self._split(matrix), strict=True))
        return [LowRankUpdate(a, tuple(bs)) for a, bs in views]

    def initial(self, *, rank: int, seed: int) -> dict[str, Tensor]:
        """Return the initial tensors of every adapter of this rank and seed: A as drawn by `initial_a`, B zero."""
        if (rank, seed) not in self._initial:
            self._initial[rank, seed] = self._draw_initial(rank=rank, seed=seed)
        return self._initial[rank, seed]

    def _draw_initial(self, *, rank: int, seed: int) -> dict[str, Tensor]:
        tensors = {}
        for spec in (lora.spec for lora in self.loras):
            for name, d_out in zip(spec.names, spec.d_outs, strict=True):
                tensors[f"{name}.lora_A.weight"] = initial_a(name, rank=rank, d_in=spec.d_in, seed=seed)
                tensors[f"{name}.lora_B.weight"] = torch.zeros(d_out, rank)
        return tensors

    def columns_of_b(self) -> Int[Tensor, " column"]:
        """Return the columns of the [K, n] matrices that hold the B of every layer."""
        is_b = torch.ones(self.parameters.shape[1], dtype=torch.bool)
        for lora, columns in zip(self.loras, is_b.split([lora.n_parameters for lora in self.loras]), strict=True):
            columns[: lora.n_parameters_of_a] = False
        return is_b.nonzero()[:, 0]

    def _split(self, matrix: Shaped[Tensor, "k n"]) -> Sequence[Tensor]:
        """Return the columns of each fused LoRA."""
        return matrix.split([lora.n_parameters for lora in self.loras], dim=1)

    def read(self, slot: int, matrix: Float[Tensor, "k n"], *, rank: int) -> dict[str, Tensor]:
        """Return a slot's row of a [K, n] matrix as tensors named `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, padding removed.

        They are views of one copy: hundreds of small ones would take longer than a short training.
        """
        if rank not in self._order:
            self._order[rank] = self._order_of(rank)
        order, shapes = self._order[rank]
        numbers = matrix[slot].cpu().index_select(0, order)
        parts = numbers.split([math.prod(shape) for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def _order_of(self, rank: int) -> tuple[Int[Tensor, " n"], dict[str, tuple[int, ...]]]:
        """Return where in a slot's row the numbers of its tensors are, one tensor after another, and the shapes of these."""
        columns = torch.arange(self.parameters.shape[1], dtype=torch.int32)[None]
        order: dict[str, Tensor] = {}
        for lora, own in zip(self.loras, self._split(columns), strict=True):
            (a,), bs = lora.views(own)
            for name, a_of_layer, b in zip(lora.spec.names, a.split(self.rank), bs, strict=True):
                order[f"{name}.lora_A.weight"] = a_of_layer[:rank]
                order[f"{name}.lora_B.weight"] = b[0, :rank].T
        return torch.cat([part.flatten() for part in order.values()]), {name: tuple(part.shape) for name, part in order.items()}

    def write(self, slot: int, matrix: Float[Tensor, "k n"], tensors: Mapping[str, Tensor]) -> None:
        """Overwrite a slot's row of a [K, n] matrix with tensors named as `read` names them, zeros elsewhere."""
        # Assembled on the CPU and copied once: a GPU would copy every small tensor separately.
        row = torch.zeros(1, matrix.shape[1], dtype=matrix.dtype)
        for lora, columns in zip(self.loras, self._split(row), strict=True):
            (a,), bs = lora.views(columns)
            for name, a_of_layer, b in zip(lora.spec.names, a.split(self.rank), bs, strict=True):
                factor_a, factor_b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
                a_of_layer[: factor_a.shape[0]] = factor_a
                b[0, : factor_b.shape[1]] = factor_b.T
        matrix[slot] = row[0]


def targeted_layers(model: nn.Module, target_modules: Sequence[str]) -> dict[str, LinearLayer]:
    """Return the layers whose last name is one of `target_modules`, by full name, in the model's order.

    Raises:
        BadSettings: none matches, or one is neither a plain Linear nor a Conv1D.
    """
    layers: dict[str, LinearLayer] = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in target_modules:
            layer = linear_layer(module)
            if layer is None:
                raise BadSettings(f"layer {name} is a {type(module).__name__}, not a Linear; take it out of recipe.target_modules")
            layers[name] = layer
    if not layers:
        raise BadSettings(f"no layer of the base model is named {' or '.join(target_modules)}; set recipe.target_modules to names it has")
    return layers
