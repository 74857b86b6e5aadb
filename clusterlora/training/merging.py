"""One adapter made of several without training: their updates are combined and cut back to one rank.

Products are combined, never factors: mean(B) @ mean(A) is not mean(B @ A). The best rank-r update in the Frobenius norm is the truncated
singular value decomposition (Eckart and Young, 1936).
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clusterlora.models.stacked import Factors
from clusterlora.settings import MergeSettings

_DENSITY: Mapping[str, float] = {"average": 1.0, "ties": 0.2, "dare": 0.5}


def inner_products(adapters: Sequence[Factors]) -> Float[np.ndarray, "adapter adapter"]:
    """Return <dW_i, dW_j> summed over all layers, without forming any dW: sum((B_i^T B_j) * (A_i A_j^T)), equal ranks assumed."""
    total = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    for name in sorted({name for factors in adapters for name in factors}):
        a = torch.stack([factors[name][0].double() for factors in adapters])
        b = torch.stack([factors[name][1].double() for factors in adapters])
        total += torch.einsum("ird,jsd->ijrs", a, a).mul_(torch.einsum("idr,jds->ijrs", b, b)).sum((2, 3))
    return total.numpy()


def density_of(merging: MergeSettings) -> float:
    """Return the share of a part's entries that take part in the merge."""
    return _DENSITY[merging.kind] if merging.density is None else merging.density


def merge(
    parts: Mapping[str, Factors], weights: Mapping[str, float], merging: MergeSettings, *, rank: int, seed: int
) -> tuple[Factors, float]:
    """Return the merged factors, each of this rank, and the share of the squared Frobenius norm that the rank keeps (1 for a zero update).

    Args:
        parts: factors by the part's identity; nothing depends on their order.
        weights: of the same parts; they are divided by their sum.
        seed: of dare's masks, together with the part's identity and the layer.
    """
    total = sum(weights[part] for part in parts)
    share = {part: weights[part] / total for part in sorted(parts)}
    merged: dict[str, tuple[Tensor, Tensor]] = {}
    energy = kept = 0.0
    for layer in sorted({name for factors in parts.values() for name in factors}):
        factors = {part: parts[part][layer] for part in share if layer in parts[part]}
        left, core, right = _KINDS[merging.kind](factors, share, density_of(merging), f"{seed}/{layer}")
        u, s, vh = torch.linalg.svd(core, full_matrices=False)
        energy += float(s.square().sum())
        kept += float(s[:rank].square().sum())
        root = s[:rank].sqrt()
        down, up = root[:, None] * (vh[:rank] @ right), (left @ u[:, :rank]) * root
        missing = rank - len(root)
        down, up = (torch.nn.functional.pad(down, (0, 0, 0, missing)), torch.nn.functional.pad(up, (0, missing)))
        merged[layer] = down.float(), up.float()
    return merged, kept / energy if energy else 1.0


_Layer = Mapping[str, tuple[Float[Tensor, "_rank d_in"], Float[Tensor, "d_out _rank"]]]
_Decomposed = tuple[Float[Tensor, "d_out n"], Float[Tensor, "n m"], Float[Tensor, "m d_in"]]
"""An update as left @ core @ right, with orthonormal columns on the left and orthonormal rows on the right."""


def _average(layer: _Layer, share: Mapping[str, float], _density: float, _seed: str) -> _Decomposed:
    """The weighted mean, exactly, without ever building a d_out x d_in matrix: factors side by side, then QR on both sides."""
    down = torch.cat([a.double() for a, _ in layer.values()], dim=0)
    up = torch.cat([share[part] * b.double() for part, (_, b) in layer.items()], dim=1)
    left, inner_left = torch.linalg.qr(up)
    right, inner_right = torch.linalg.qr(down.T)
    return left, inner_left @ inner_right.T, right.T


def _ties(layer: _Layer, share: Mapping[str, float], density: float, _seed: str) -> _Decomposed:
    """Trim each update to its largest entries, elect a sign per entry, average those that agree (Yadav et al. 2023, arXiv 2306.01708)."""
    weighted = {part: share[part] * _trimmed(b.double() @ a.double(), density) for part, (a, b) in layer.items()}
    sign = torch.stack(list(weighted.values())).sum(0).sign()
    total, voters = torch.zeros_like(sign), torch.zeros_like(sign)
    for part, update in weighted.items():
        agrees = (update.sign() == sign) & (update != 0)
        total += update * agrees
        voters += share[part] * agrees
    return _dense(torch.where(voters > 0, total / voters.clamp_min(torch.finfo(voters.dtype).tiny), 0.0))


def _dare(layer: _Layer, share: Mapping[str, float], density: float, seed: str) -> _Decomposed:
    """Drop entries at random, scale the others up, then average (Yu et al. 2024, arXiv 2311.03099)."""
    total = None
    for part, (a, b) in layer.items():
        update = b.double() @ a.double()
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{part}".encode()).digest()[:7]))
        survives = torch.rand(update.shape, generator=generator, dtype=torch.float64) < density
        update = share[part] * update * survives.to(update.device) / density
        total = update if total is None else total + update
    assert total is not None, "a layer without parts"
    return _dense(total)


def _trimmed(update: Tensor, density: float) -> Tensor:
    n_kept = max(1, math.ceil(density * update.numel()))
    kept = update.abs().flatten().topk(n_kept).indices
    trimmed = torch.zeros_like(update).flatten()
    trimmed[kept] = update.flatten()[kept]
    return trimmed.view_as(update)


def _dense(update: Tensor) -> _Decomposed:
    eye = {n: torch.eye(n, dtype=update.dtype, device=update.device) for n in update.shape}
    return eye[update.shape[0]], update, eye[update.shape[1]]


_KINDS: Mapping[str, Callable[[_Layer, Mapping[str, float], float, str], _Decomposed]] = {
    "average": _average,
    "ties": _ties,
    "dare": _dare,
}
