"""LoRA for K adapters at once over one frozen base: where their factors are, and what one batch needs of them.

legend   k slot, b row of the batch (one dialogue of one adapter), t token, r rank, R = g * r for the g layers of a group, D their outputs

Linear layers that read the same tensor (q, k, v; gate, up) form a group: their A one under another, their B on the diagonal of one
matrix. For row b, answered by slot k = slot[b], with scale s = alpha / r and dropout mask m folded into A,

    A_b = s A_k * m_b         h_b = x_b A_b^T           y_b = x_b W^T + h_b B_k^T

and backward, given dy_b,

    u_b = dy_b B_k            dA_k += s m_b * (u_b^T x_b)
    dB_k += dy_b^T h_b        dx_b  = dy_b W + u_b A_b

Rows of different slots never meet, so K adapters trained together are K adapters trained alone. Parameters and gradients of slot k
are row k of two matrices [K, n]; A and B are views of them, and the backward pass adds straight into the gradient's rows.
Source: Hu et al. 2021, LoRA (arXiv 2106.09685); batching over adapters as in S-LoRA (arXiv 2311.03285), here for training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clusterlora.errors import BadSettings
from clusterlora.training.job import initial_a


@dataclass(slots=True)
class Rows:
    """Which adapter each row of the batch belongs to, its alpha / r, and its dropout mask over all groups' inputs."""

    slot: Int[Tensor, " b"]
    scale: Float[Tensor, " b"]
    masks: Float[Tensor, "b feature"] | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a group's layers are: their names, and which of the D outputs of the tensor's readers are theirs."""

    names: tuple[str, ...]
    d_in: int
    width: int
    outputs: tuple[slice, ...]

    @property
    def d_outs(self) -> tuple[int, ...]:
        """Outputs of each layer."""
        return tuple(part.stop - part.start for part in self.outputs)


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
    def total_rank(self) -> int:
        """R: the ranks of all layers together."""
        return self.rank * len(self.place.names)

    def views(self, matrix: Float[Tensor, "k n"]) -> tuple[Float[Tensor, "k R d_in"], list[Tensor]]:
        """Return A and the B of each layer as views of this group's columns of a [K, n] matrix."""
        n_slots, columns = matrix.shape[0], self.total_rank * self.place.d_in
        a = matrix[:, :columns].view(n_slots, -1, self.place.d_in)
        bs = []
        for d_out in self.place.d_outs:
            bs.append(matrix[:, columns : columns + d_out * self.rank].view(n_slots, d_out, self.rank))
            columns += d_out * self.rank
        return a, bs

    def gather(self, rows: Rows, dtype: torch.dtype) -> tuple[Float[Tensor, "b R d_in"], Float[Tensor, "b D R"]]:
        """Return each row's A, scale and mask in it, and its B, every layer's in its own rows and columns."""
        a = self.a.index_select(0, rows.slot).mul_(self._folded(rows)).to(dtype)
        if self.place.outputs == (slice(0, self.place.width),):
            return a, self.bs[0].index_select(0, rows.slot).to(dtype)
        b = a.new_zeros(len(rows.slot), self.place.width, self.total_rank)
        for columns, outputs, factor in zip(self._columns(), self.place.outputs, self.bs, strict=True):
            b[:, outputs, columns] = factor.index_select(0, rows.slot).to(dtype)
        return a, b

    def add(self, rows: Rows, grad_a: Float[Tensor, "b R d_in"], grad_b: Float[Tensor, "b D R"]) -> None:
        """Add the gradients of what `gather` returned to the slots' own."""
        self.grad_a.index_add_(0, rows.slot, grad_a.to(self.grad_a.dtype).mul_(self._folded(rows)))
        for columns, outputs, gradient in zip(self._columns(), self.place.outputs, self.grad_bs, strict=True):
            gradient.index_add_(0, rows.slot, grad_b[:, outputs, columns].to(gradient.dtype))

    def _columns(self) -> list[slice]:
        return [slice(start, start + self.rank) for start in range(0, self.total_rank, self.rank)]

    def _folded(self, rows: Rows) -> Tensor:
        scale = rows.scale[:, None, None]
        return scale if rows.masks is None else scale * rows.masks[:, None, self._features]


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
            columns[: group.total_rank * group.place.d_in] = False
        return is_b.nonzero()[:, 0]

    def _by_group(self, matrix: Float[Tensor, "k n"]) -> Sequence[Tensor]:
        return matrix.split([group.n_parameters for group in self.groups], dim=1)

    def read(self, slot: int, matrix: Float[Tensor, "k n"], *, rank: int) -> dict[str, Tensor]:
        """Return a slot's row of a [K, n] matrix as tensors named `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, padding removed."""
        tensors = {}
        for group, columns in zip(self.groups, self._by_group(matrix), strict=True):
            a, bs = group.views(columns)
            for name, part, b in zip(group.place.names, a[slot].split(self.rank), bs, strict=True):
                tensors[f"{name}.lora_A.weight"] = part[:rank].clone()
                tensors[f"{name}.lora_B.weight"] = b[slot, :, :rank].clone()
        return tensors

    def write(self, slot: int, matrix: Float[Tensor, "k n"], tensors: Mapping[str, Tensor]) -> None:
        """Set a slot's row of a [K, n] matrix from tensors named as `read` names them, zeros elsewhere."""
        matrix[slot].zero_()
        for group, columns in zip(self.groups, self._by_group(matrix), strict=True):
            a, bs = group.views(columns)
            for name, part, b in zip(group.place.names, a[slot].split(self.rank), bs, strict=True):
                factor_a, factor_b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
                part[: factor_a.shape[0]] = factor_a
                b[slot, :, : factor_b.shape[1]] = factor_b


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
