"""LoRA for K adapters at once over one frozen base: where their factors are, and what one batch needs of them.

legend   k slot, b row of the batch (one dialogue of one adapter), r rank, R = g * r for the g layers of a group, D outputs, N tokens

Linear layers that read the same tensor (q, k, v; gate, up) form a group: their A one under another, every B by itself. For row b,
answered by slot k = slot[b], with scale s = alpha / r and dropout mask m folded into A,

    A_b = s A_k * m_b         dA_k += s m_b * dA_b      dB_k += dB_b

with the products of `models.low_rank_update` for each row. Rows of different slots never interact, so K adapters trained together equal K
adapters trained alone. Parameters and gradients of slot k are row k of two matrices [K, n]; A and B^T are views of them, and the
backward pass accumulates into the gradient's rows directly.
Source: Hu et al. 2021, LoRA (arXiv 2106.09685); batching over adapters as in S-LoRA (arXiv 2311.03285), here for training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clusterlora.errors import BadSettings
from clusterlora.models.low_rank_update import Update
from clusterlora.models.packing import Run
from clusterlora.training.job import initial_a


@dataclass(slots=True)
class Rows:
    """Which adapter each row of the batch belongs to, and what its A is multiplied by.

    `factor` is alpha / r times the row's dropout mask over all groups' inputs, or alpha / r alone, in a single column.
    """

    slot: Int[Tensor, " b"]
    factor: Float[Tensor, "b feature"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a group's layers are: their names, what they read and how many outputs each has."""

    names: tuple[str, ...]
    d_in: int
    d_outs: tuple[int, ...]


class Group:
    """The slots' factors for linear layers that read the same tensor."""

    def __init__(self, place: Place, *, rank: int, first_feature: int) -> None:
        self.place = place
        self.rank = rank
        self._features = slice(first_feature, first_feature + place.d_in)
        self.a: Tensor
        self.bs: list[Tensor]
        self.grad_a: Tensor
        self.grad_bs: list[Tensor]

    @property
    def n_parameters(self) -> int:
        """Parameters of one slot in this group."""
        return self.rank * (len(self.place.names) * self.place.d_in + sum(self.place.d_outs))

    @property
    def n_of_a(self) -> int:
        """Parameters of one slot's A."""
        return self.rank * len(self.place.names) * self.place.d_in

    def views(self, matrix: Float[Tensor, "k n"]) -> tuple[Float[Tensor, "k R d_in"], list[Float[Tensor, "k _r _D"]]]:
        """Return A and the transposed B of each layer as views of this group's columns of a [K, n] matrix."""
        n_slots = matrix.shape[0]
        a, *bs = matrix.split([self.n_of_a, *(self.rank * d_out for d_out in self.place.d_outs)], dim=1)
        return a.view(n_slots, -1, self.place.d_in), [b.view(n_slots, self.rank, -1) for b in bs]

    def of_inputs(self, factor: Float[Tensor, "n feature"]) -> Float[Tensor, "n d_in"]:
        """Return the columns of a factor that are this group's inputs; a single column is for all of them."""
        return factor if factor.shape[1] == 1 else factor[:, self._features]

    def gather(self, rows: Rows, dtype: torch.dtype) -> Update:
        """Return each row's factors, its scale and its mask in A."""
        a = self.a.index_select(0, rows.slot).mul_(self.of_inputs(rows.factor)[:, None]).to(dtype)
        return Update(a, tuple(b.index_select(0, rows.slot).to(dtype) for b in self.bs))

    def add(self, rows: Rows, gradient: Update) -> None:
        """Add the gradients of what `gather` returned to the slots' own."""
        self.grad_a.index_add_(0, rows.slot, gradient.a.to(self.grad_a.dtype).mul_(self.of_inputs(rows.factor)[:, None]))
        for to, of_b in zip(self.grad_bs, gradient.bs, strict=True):
            to.index_add_(0, rows.slot, of_b.to(to.dtype))


class GatheredLora:
    """A group's factors for a batch whose rows are of different slots: gathered, each row with its own."""

    def __init__(self, group: Group, rows: Rows, dtype: torch.dtype) -> None:
        self._group = group
        self._rows = rows
        self._update = group.gather(rows, dtype)

    def forward(self, x: Float[Tensor, "N d_in"], ys: Sequence[Float[Tensor, "N _D"]], runs: Sequence[Run]) -> list[Tensor]:
        """Add to the layers' outputs; return what came out of A, run by run."""
        return self._update.forward(x, ys, runs)

    def backward(
        self,
        x: Float[Tensor, "N d_in"],
        hs: Sequence[Tensor],
        dys: Sequence[Float[Tensor, "N _D"]],
        dx: Float[Tensor, "N d_in"] | None,
        runs: Sequence[Run],
    ) -> None:
        """Add to the gradients of the slots' factors, and to the gradient of x."""
        gradient = self._update.empty_like()
        self._update.backward(x, hs, dys, dx, runs, gradient)
        self._group.add(self._rows, gradient)

    @property
    def n_bytes(self) -> int:
        """What the gathered factors take."""
        return self._update.n_bytes


class StackedLora:
    """K slots of LoRA on the targeted linear layers of a frozen model, as two matrices [K, n]: parameters and gradients."""

    def __init__(self, model: nn.Module, places: Sequence[Place], *, n_slots: int, rank: int) -> None:
        """Make room.

        Args:
            rank: the largest rank of any slot; smaller ones are padded with zeros, which stay exactly zero.
        """
        self.rank = rank
        self.groups: list[Group] = []
        self.n_features = 0
        self._initial: dict[tuple[int, int], dict[str, Tensor]] = {}
        for place in places:
            self.groups.append(Group(place, rank=rank, first_feature=self.n_features))
            self.n_features += place.d_in
        like = next(model.parameters())
        # The frozen base may be float64 in tests; adapters are at least float32 whatever the base is.
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.parameters = torch.zeros(n_slots, sum(group.n_parameters for group in self.groups), device=like.device, dtype=dtype)
        self.gradients = torch.zeros_like(self.parameters)
        for group, values, gradients in zip(self.groups, self._by_group(self.parameters), self._by_group(self.gradients), strict=True):
            group.a, group.bs = group.views(values)
            group.grad_a, group.grad_bs = group.views(gradients)

    def initial(self, *, rank: int, seed: int) -> dict[str, Tensor]:
        """Return what every adapter of this rank and seed starts from: A drawn once for all, B zero."""
        if (rank, seed) not in self._initial:
            self._initial[rank, seed] = self._drawn(rank=rank, seed=seed)
        return self._initial[rank, seed]

    def _drawn(self, *, rank: int, seed: int) -> dict[str, Tensor]:
        tensors = {}
        for place in (group.place for group in self.groups):
            for name, d_out in zip(place.names, place.d_outs, strict=True):
                tensors[f"{name}.lora_A.weight"] = initial_a(name, rank=rank, d_in=place.d_in, seed=seed)
                tensors[f"{name}.lora_B.weight"] = torch.zeros(d_out, rank)
        return tensors

    def columns_of_b(self) -> Int[Tensor, " column"]:
        """Return the columns of the [K, n] matrices that hold the B of every layer."""
        is_b = torch.ones(self.parameters.shape[1], dtype=torch.bool)
        for group, columns in zip(self.groups, is_b.split([group.n_parameters for group in self.groups]), strict=True):
            columns[: group.n_of_a] = False
        return is_b.nonzero()[:, 0]

    def _by_group(self, matrix: Float[Tensor, "k n"]) -> Sequence[Tensor]:
        return matrix.split([group.n_parameters for group in self.groups], dim=1)

    def read(self, slot: int, matrix: Float[Tensor, "k n"], *, rank: int) -> dict[str, Tensor]:
        """Return a slot's row of a [K, n] matrix as tensors named `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, padding removed."""
        tensors = {}
        row = torch.empty(1, matrix.shape[1], dtype=matrix.dtype).copy_(matrix[slot])
        for group, columns in zip(self.groups, self._by_group(row), strict=True):
            (a,), bs = group.views(columns)
            for name, part, b in zip(group.place.names, a.split(self.rank), bs, strict=True):
                tensors[f"{name}.lora_A.weight"] = part[:rank]
                tensors[f"{name}.lora_B.weight"] = b[0, :rank].T.contiguous()
        return tensors

    def write(self, slot: int, matrix: Float[Tensor, "k n"], tensors: Mapping[str, Tensor]) -> None:
        """Set a slot's row of a [K, n] matrix from tensors named as `read` names them, zeros elsewhere."""
        # Put together on the CPU: to a GPU every small tensor would be a copy of its own.
        row = torch.zeros(1, matrix.shape[1], dtype=matrix.dtype)
        for group, columns in zip(self.groups, self._by_group(row), strict=True):
            (a,), bs = group.views(columns)
            for name, part, b in zip(group.place.names, a.split(self.rank), bs, strict=True):
                factor_a, factor_b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
                part[: factor_a.shape[0]] = factor_a
                b[0, : factor_b.shape[1]] = factor_b.T
        matrix[slot] = row[0]


def through(dys: Sequence[Float[Tensor, "N _D"]], weights: Sequence[Float[Tensor, "_D d_in"]]) -> Float[Tensor, "N d_in"]:
    """Return the gradient of what layers with these weights read, all of them the same tensor."""
    dx = torch.mm(dys[0], weights[0])
    for dy, weight in zip(dys[1:], weights[1:], strict=True):
        dx.addmm_(dy, weight)
    return dx


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
