"""The number of clusters, if the settings leave it open."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from clusterlora.clustering.features import Evidence, feature_matrix

SMALLEST, LARGEST = 2, 12

Partition = Callable[[Float[np.ndarray, "persona dim"], int], Int[np.ndarray, " persona"]]
"""(features, k) -> labels."""


def curve_over_k(evidence: Evidence, partition: Partition, *, min_size: int) -> tuple[tuple[int, float, float], ...]:
    """Return (k, silhouette, held-out NLL) for every k from 2 to 12 for which clusters can have `min_size` personas.

    The silhouette is that of the partition of all evidence (Rousseeuw 1987). The held-out negative log-likelihood, in nats per dimension,
    is that of the personas' means over every second piece of evidence, under spherical Gaussians around the centroids of the other pieces.
    It falls with k as long as the additional clusters are real; nan if a persona has only one piece of evidence.
    """
    features = feature_matrix(evidence)
    largest = min(LARGEST, len(features) // max(1, min_size), len(np.unique(features, axis=0)) - 1)
    return tuple((k, *_quality(evidence, features, partition, k)) for k in range(SMALLEST, largest + 1))


def best_k(curve: tuple[tuple[int, float, float], ...]) -> int:
    """Return the k with the largest silhouette, the smallest of equals; 2 if the curve is empty."""
    return max(curve, key=lambda point: (point[1], -point[0]))[0] if curve else SMALLEST


def _quality(evidence: Evidence, features: Float[np.ndarray, "persona dim"], partition: Partition, k: int) -> tuple[float, float]:
    from sklearn.metrics import silhouette_score

    silhouette = float(silhouette_score(features, partition(features, k)))
    if any(len(pieces) < 2 for pieces in evidence):
        return silhouette, float("nan")
    fitted = feature_matrix(tuple(pieces[::2] for pieces in evidence))
    held_out = feature_matrix(tuple(pieces[1::2] for pieces in evidence))
    labels = partition(fitted, k)
    centroids = np.stack([fitted[labels == label].mean(axis=0) if np.any(labels == label) else fitted.mean(axis=0) for label in range(k)])
    variance = max(float(np.mean((fitted - centroids[labels]) ** 2)), 1e-12)
    return silhouette, 0.5 * (float(np.mean((held_out - centroids[labels]) ** 2)) / variance + float(np.log(2 * np.pi * variance)))
