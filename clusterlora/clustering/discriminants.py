"""Linear discriminants of personas: directions in which they differ from each other but are consistent themselves."""

import numpy as np
from jaxtyping import Float

from clusterlora.clustering.features import Evidence, feature_matrix
from clusterlora.errors import BadData

_DIRECTIONS = 8
_SMALLEST_VARIANCE = 1e-4


def discriminants(evidence: Evidence) -> tuple[Float[np.ndarray, "_ direction"], ...]:
    """Return the evidence projected on the linear discriminants of the personas.

    The variation between pieces of the same persona is mostly due to the prompts. After whitening by that variation, the directions
    in which persona means differ most are those that distinguish personas. The covariance within personas is shrunk, because there are
    more dimensions than pieces.
    Source: Rao 1948; shrinkage, Ledoit & Wolf 2004.

    Raises:
        BadData: no persona has two pieces that differ.
    """
    from sklearn.covariance import ledoit_wolf

    deviations = np.concatenate([pieces - pieces.mean(axis=0) for pieces in evidence])
    if np.allclose(deviations, 0):
        raise BadData("discriminants need at least one persona with two different train responses; cluster by responses")
    covariance, _ = ledoit_wolf(deviations, assume_centered=True)
    variances, axes = np.linalg.eigh(covariance)
    whitener = axes / np.sqrt(np.maximum(variances, _SMALLEST_VARIANCE * variances.max()))
    _, _, directions = np.linalg.svd(feature_matrix(evidence) @ whitener, full_matrices=False)
    projection = whitener @ directions[:_DIRECTIONS].T
    return tuple(pieces @ projection for pieces in evidence)
