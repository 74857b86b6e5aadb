"""Whitening of evidence: the variation between pieces of the same persona gets the same size in every direction."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from clusterlora.clustering.features import Evidence
from clusterlora.clustering.pieces import CrossedPieces, pieces_of

_SMALLEST_VARIANCE = 1e-4
_NO_DEVIATION = 1e-8


def whitened(evidence: Evidence) -> Evidence:
    """Return the evidence in coordinates in which the pieces of a persona have the covariance 1.

    The variation between pieces of the same persona is mostly due to the prompts. In these coordinates, the directions in which persona
    means differ most are those that distinguish personas: the linear discriminants. The covariance within personas is shrunk, because there
    are more dimensions than pieces. Where no persona has two pieces that differ, there is nothing to whiten by.
    Source: Rao 1948; shrinkage, Ledoit & Wolf 2004.
    """
    pieces = pieces_of(evidence)
    total, fourth = pieces.second_moments()
    n = int(pieces.counts.sum())
    if np.diag(total).max(initial=0.0) <= n * _NO_DEVIATION**2:
        return evidence
    variances, axes = np.linalg.eigh(_shrunk(total / n, fourth, n))
    whitener = axes / np.sqrt(np.maximum(variances, _SMALLEST_VARIANCE * variances.max()))
    if isinstance(pieces, CrossedPieces):
        return replace(pieces, matrix=whitener)
    return tuple(own @ whitener for own in pieces.arrays)


def _shrunk(covariance: Float[np.ndarray, "dim dim"], fourth: float, n: int) -> Float[np.ndarray, "dim dim"]:
    """Return the covariance of n vectors of mean 0, drawn to a multiple of the identity as far as it is due to chance.

    Source: Ledoit & Wolf 2004, lemmas 3.2 to 3.5.

    Args:
        fourth: sum of the fourth powers of the vectors' lengths.
    """
    dim = len(covariance)
    mean, square = np.trace(covariance) / dim, np.sum(covariance**2)
    dispersion = square / dim - mean**2
    chance = min((fourth / n - square) / (n * dim), dispersion)
    share = chance / dispersion if chance > 0 else 0.0
    return (1 - share) * covariance + share * mean * np.eye(dim)
