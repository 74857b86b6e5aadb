"""Whitening of evidence: the variation between pieces of the same persona gets the same size in every direction."""

import numpy as np

from clusterlora.clustering.features import Evidence

_SMALLEST_VARIANCE = 1e-4


def whitened(evidence: Evidence) -> Evidence:
    """Return the evidence in coordinates in which the pieces of a persona have the covariance 1.

    The variation between pieces of the same persona is mostly due to the prompts. In these coordinates, the directions in which persona
    means differ most are those that distinguish personas: the linear discriminants. The covariance within personas is shrunk, because there
    are more dimensions than pieces. Where no persona has two pieces that differ, there is nothing to whiten by.
    Source: Rao 1948; shrinkage, Ledoit & Wolf 2004.
    """
    from sklearn.covariance import ledoit_wolf

    deviations = np.concatenate([pieces - pieces.mean(axis=0) for pieces in evidence])
    if np.allclose(deviations, 0):
        return evidence
    covariance, _ = ledoit_wolf(deviations, assume_centered=True)
    variances, axes = np.linalg.eigh(covariance)
    whitener = axes / np.sqrt(np.maximum(variances, _SMALLEST_VARIANCE * variances.max()))
    return tuple(pieces @ whitener for pieces in evidence)
