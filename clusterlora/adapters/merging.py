"""Merging adapters without training: their updates B @ A are combined and truncated to one rank.

Updates are combined, not factors, because mean(B) @ mean(A) is not mean(B @ A). The best rank-r approximation in the Frobenius norm is the
truncated singular value decomposition (Eckart & Young 1936).
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clusterlora.engine.stacked import Factors
from clusterlora.method_settings import MergeSettings

_DENSITY: Mapping[str, float] = {"average": 1.0, "ties": 0.2, "dare": 0.5}


def inner_products(adapters: Sequence[Factors]) -> Float[np.ndarray, "adapter adapter"]:
    """Return <dW_i, dW_j> summed over all layers, as sum((B_i^T B_j) * (A_i A_j^T)) without forming dW; all ranks must be equal."""
    total = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    for name in sorted({name for factors in adapters for name in factors}):
        a = torch.stack([factors[name][0].double() for factors in adapters])
        b = torch.stack([factors[name][1].double() for factors in adapters])
        total += torch.einsum("ird,jsd->ijrs", a, a).mul_(torch.einsum("idr,jds->ijrs", b, b)).sum((2, 3))
    return total.numpy()


def density_of(merging: MergeSettings) -> float:
    """Return the share of each update's entries that are merged: `merging.density`, else the kind's default."""
    return _DENSITY[merging.kind] if merging.density is None else merging.density


def merge_factors(
    factors_by_key: Mapping[str, Factors], weight_by_key: Mapping[str, float], merging: MergeSettings, *, rank: int, seed: int
) -> tuple[Factors, float]:
    """Return the merged factors, each of this rank, and the share of the squared Frobenius norm that the rank keeps (1 for a zero update).

    Args:
        factors_by_key: the adapters by cache key; the result does not depend on their order.
        weight_by_key: weights of the same adapters, which are normalised to sum to 1.
        seed: of dare's masks, together with the cache key and the layer.
    """
    total = sum(weight_by_key[key] for key in factors_by_key)
    share = {key: weight_by_key[key] / total for key in sorted(factors_by_key)}
    merged: dict[str, tuple[Tensor, Tensor]] = {}
    energy = kept = 0.0
    for layer in sorted({name for factors in factors_by_key.values() for name in factors}):
        factors = {key: factors_by_key[key][layer] for key in share if layer in factors_by_key[key]}
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
    """Return the exact weighted mean without forming a d_out x d_in matrix: concatenated factors, then QR on both sides."""
    down = torch.cat([a.double() for a, _ in layer.values()], dim=0)
    up = torch.cat([share[key] * b.double() for key, (_, b) in layer.items()], dim=1)
    left, inner_left = torch.linalg.qr(up)
    right, inner_right = torch.linalg.qr(down.T)
    return left, inner_left @ inner_right.T, right.T


def _ties(layer: _Layer, share: Mapping[str, float], density: float, _seed: str) -> _Decomposed:
    """Return TIES: each update trimmed to its largest entries, a sign elected per entry, those that agree averaged.

    Source: Yadav et al. 2023 (arXiv 2306.01708).
    """
    weighted = {key: share[key] * _trimmed(b.double() @ a.double(), density) for key, (a, b) in layer.items()}
    sign = torch.stack(list(weighted.values())).sum(0).sign()
    total, voters = torch.zeros_like(sign), torch.zeros_like(sign)
    for key, update in weighted.items():
        agrees = (update.sign() == sign) & (update != 0)
        total += update * agrees
        voters += share[key] * agrees
    return _dense(torch.where(voters > 0, total / voters.clamp_min(torch.finfo(voters.dtype).tiny), 0.0))


def _dare(layer: _Layer, share: Mapping[str, float], density: float, seed: str) -> _Decomposed:
    """Return DARE: the mean of updates whose entries are dropped at random and the others rescaled (Yu et al. 2024, arXiv 2311.03099)."""
    total = None
    for key, (a, b) in layer.items():
        update = b.double() @ a.double()
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:7]))
        survives = torch.rand(update.shape, generator=generator, dtype=torch.float64) < density
        update = share[key] * update * survives.to(update.device) / density
        total = update if total is None else total + update
    assert total is not None, "a layer that no adapter changes"
    return _dense(total)


def _trimmed(update: Tensor, density: float) -> Tensor:
    """Return the update with all but its largest entries set to zero."""
    n_kept = max(1, math.ceil(density * update.numel()))
    kept = update.abs().flatten().topk(n_kept).indices
    trimmed = torch.zeros_like(update).flatten()
    trimmed[kept] = update.flatten()[kept]
    return trimmed.view_as(update)


def _dense(update: Tensor) -> _Decomposed:
    """Return a dense update with identities on both sides."""
    eye = {n: torch.eye(n, dtype=update.dtype, device=update.device) for n in update.shape}
    return eye[update.shape[0]], update, eye[update.shape[1]]


_KINDS: Mapping[str, Callable[[_Layer, Mapping[str, float], float, str], _Decomposed]] = {
    "average": _average,
    "ties": _ties,
    "dare": _dare,
}
