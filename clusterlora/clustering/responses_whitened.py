"""A persona is what it is answered with, heard through what one persona's answers have in common."""

import numpy as np

from clusterlora.clustering.features import Evidence
from clusterlora.clustering.responses import responses
from clusterlora.errors import BadData
from clusterlora.ports import Embedder
from clusterlora.values import Persona

_SMALLEST_VARIANCE = 1e-4


def responses_whitened(personas: tuple[Persona, ...], embedder: Embedder) -> Evidence:
    """Return the train responses with the covariance within personas whitened.

    What varies from answer to answer of the same persona is mostly what was asked for. Scaled down, it leaves the directions in
    which people agree with themselves and differ from others. The covariance is shrunk, as there are more dimensions than answers.
    Source: within-class covariance normalisation, Hatch, Kajarekar & Stolcke 2006; shrinkage, Ledoit & Wolf 2004.

    Raises:
        BadData: a persona has no train response, or no persona has two that differ.
    """
    from sklearn.covariance import ledoit_wolf

    evidence = responses(personas, embedder)
    deviations = np.concatenate([pieces - pieces.mean(axis=0) for pieces in evidence])
    if np.allclose(deviations, 0):
        raise BadData("responses_whitened needs a persona with two different train responses and found none; cluster by responses")
    covariance, _ = ledoit_wolf(deviations, assume_centered=True)
    variances, directions = np.linalg.eigh(covariance)
    whitener = directions / np.sqrt(np.maximum(variances, _SMALLEST_VARIANCE * variances.max()))
    return tuple(pieces @ whitener for pieces in evidence)
