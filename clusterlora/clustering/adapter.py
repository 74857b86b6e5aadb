"""Features `adapter`: the weight update of the persona's own adapter."""

import numpy as np

from clusterlora.clustering.features import Evidence, Sources
from clusterlora.values import Persona

_SMALLEST_EIGENVALUE = 1e-9


def adapter(personas: tuple[Persona, ...], sources: Sources) -> Evidence:
    """Return points whose inner products are the cosines between the personas' weight updates dW = s B A.

    The points are the rows of V sqrt(L) for the cosine matrix V L V^T (classical scaling, Torgerson 1952).
    """
    products = sources.products(personas)
    norms = np.sqrt(np.maximum(np.diag(products), 1e-30))
    values, vectors = np.linalg.eigh(products / np.outer(norms, norms))
    kept = values > _SMALLEST_EIGENVALUE * values.max()
    points = vectors[:, kept] * np.sqrt(values[kept])
    return tuple(points[:, None, :])
