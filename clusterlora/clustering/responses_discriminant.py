"""A persona is what it is answered with, in the directions that tell personas apart."""

import numpy as np

from clusterlora.clustering.features import Evidence, feature_matrix
from clusterlora.clustering.responses import responses
from clusterlora.errors import BadData
from clusterlora.ports import Embedder
from clusterlora.values import Persona

_DIRECTIONS = 8
_SMALLEST_VARIANCE = 1e-4


def responses_discriminant(personas: tuple[Persona, ...], embedder: Embedder) -> Evidence:
    """Return the train responses projected on the linear discriminants of the personas.

    What varies from answer to answer of the same persona is mostly what was asked for. Measured in units of that variation
    (whitened), the directions in which persona means differ most are those in which people agree with themselves and differ
    from others. The covariance within personas is shrunk, as there are more dimensions than answers.
    Source: Rao 1948; shrinkage, Ledoit & Wolf 2004.

    Raises:
        BadData: a persona has no train response, or no persona has two that differ.
    """
    from sklearn.covariance import ledoit_wolf

    evidence = responses(personas, embedder)
    deviations = np.concatenate([pieces - pieces.mean(axis=0) for pieces in evidence])
    if np.allclose(deviations, 0):
        raise BadData("responses_discriminant needs a persona with two different train responses and found none; cluster by responses")
    covariance, _ = ledoit_wolf(deviations, assume_centered=True)
    variances, axes = np.linalg.eigh(covariance)
    whitener = axes / np.sqrt(np.maximum(variances, _SMALLEST_VARIANCE * variances.max()))
    _, _, directions = np.linalg.svd(feature_matrix(evidence) @ whitener, full_matrices=False)
    projection = whitener @ directions[:_DIRECTIONS].T
    return tuple(pieces @ projection for pieces in evidence)
