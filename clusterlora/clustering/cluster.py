"""The clustering of a study's personas, and its quality."""

import logging
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from clusterlora.clustering import ALGORITHMS
from clusterlora.clustering.choose_k import best_k, curve_over_k
from clusterlora.clustering.features import Evidence, Sources, feature_matrix, resampled
from clusterlora.clustering.kmeans import exact_sizes, free_sizes
from clusterlora.errors import BadData, BadSettings
from clusterlora.settings import ClusteringSettings
from clusterlora.values import Clustering, Dataset

log = logging.getLogger(__name__)

_RERUNS = 20
_UNSTABLE = 0.5

Partition = Callable[[Float[np.ndarray, "persona dim"], int], Int[np.ndarray, " persona"]]
"""(features, seed) -> labels."""


def cluster_personas(dataset: Dataset, settings: ClusteringSettings, sources: Sources) -> Clustering:
    """Return the clusters, smallest first, or in the order of `settings.sizes`; members in the order of their ids.

    The result does not depend on the order of the personas in the data set. `quality` contains `silhouette`, `ari_seeds` and
    `ari_bootstraps`: mean adjusted Rand index with 20 partitions of other seeds and 20 of resampled responses. `map_2d` is the projection
    on the first two principal components. Without sizes and k, the k with the largest silhouette is used.

    Raises:
        BadSettings: sizes do not sum to the number of personas, or k is larger than it.
        BadData: a persona lacks the data that the algorithm reads, or the personas have fewer distinct features than k.
    """
    personas = tuple(sorted(dataset.personas, key=lambda persona: persona.id))
    _check(settings, len(personas))
    evidence = ALGORITHMS[settings.algorithm](personas, sources)
    features = feature_matrix(evidence)
    curve: tuple[tuple[int, float, float], ...] = ()
    k = len(settings.sizes) if settings.sizes else settings.k
    if k is None:
        curve = curve_over_k(evidence, lambda features, k: _partition(settings, k)(features, settings.seed), min_size=settings.min_size)
        k = best_k(curve)
    if settings.sizes is None and (n_distinct := len(np.unique(features, axis=0))) < k:
        raise BadData(f"{len(personas)} personas look like only {n_distinct} by {settings.algorithm}, fewer than k={k}; lower clustering.k")
    partition = _partition(settings, k)
    labels = partition(features, settings.seed)
    quality = _quality(evidence, features, labels, partition, settings.seed)
    for name, value in quality:
        if name != "silhouette" and value < _UNSTABLE:
            log.warning("clusters by %s are unstable: %s is %.2f, below %.1f", settings.algorithm, name, value, _UNSTABLE)
    return Clustering(
        algorithm=settings.algorithm,
        members=tuple(tuple(p.id for p, label in zip(personas, labels, strict=True) if label == k) for k in range(labels.max() + 1)),
        quality=quality,
        map_2d=tuple((p.id, float(x), float(y)) for p, (x, y) in zip(personas, _plane(features), strict=True)),
        curve=curve,
    )


def _check(settings: ClusteringSettings, n_personas: int) -> None:
    sizes, k = settings.sizes, settings.k
    if sizes is None and k is not None and k > n_personas:
        raise BadSettings(f"clustering.k={k} exceeds the {n_personas} personas; lower k or add personas")
    if sizes is not None and (sum(sizes) != n_personas or min(sizes, default=0) < 1):
        raise BadSettings(
            f"clustering.sizes={sizes} sum to {sum(sizes)} for {n_personas} personas; "
            f"give sizes of at least 1 that sum to {n_personas}, or none"
        )


def _partition(settings: ClusteringSettings, k: int) -> Partition:
    sizes = settings.sizes
    if sizes is None:
        return lambda features, seed: free_sizes(features, k, seed=seed, min_size=settings.min_size)
    return lambda features, seed: exact_sizes(features, sizes, seed=seed)


def _quality(
    evidence: Evidence, features: Float[np.ndarray, "persona dim"], labels: Int[np.ndarray, " persona"], partition: Partition, seed: int
) -> tuple[tuple[str, float], ...]:
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    quality: list[tuple[str, float]] = []
    if 2 <= len(np.unique(labels)) < len(labels):
        quality.append(("silhouette", float(silhouette_score(features, labels))))
    other_seeds = [adjusted_rand_score(labels, partition(features, seed + 1 + rerun)) for rerun in range(_RERUNS)]
    quality.append(("ari_seeds", float(np.mean(other_seeds))))
    if any(len(pieces) > 1 for pieces in evidence):
        rng = np.random.default_rng(seed)
        bootstraps = [partition(feature_matrix(resampled(evidence, rng)), seed) for _ in range(_RERUNS)]
        quality.append(("ari_bootstraps", float(np.mean([adjusted_rand_score(labels, bootstrap) for bootstrap in bootstraps]))))
    return tuple(quality)


def _plane(features: Float[np.ndarray, "persona dim"]) -> Float[np.ndarray, "persona 2"]:
    """Return the first two principal components; signs are fixed so that the largest loading of each is positive."""
    left, singular_values, right = np.linalg.svd(features, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.argmax(np.abs(right), axis=1)])
    plane = (left * singular_values * signs)[:, :2]
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
