"""The clustering of a study's personas, and its quality."""

import logging
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from clusterlora.clustering import ALGORITHMS, AUTO, WITHOUT_EMBEDDINGS
from clusterlora.clustering.choice import LARGEST_K, Candidate, best, candidates
from clusterlora.clustering.exchange_topics import exchange_topics
from clusterlora.clustering.features import Evidence, Sources, feature_matrix, resampled
from clusterlora.clustering.kmeans import exact_sizes, free_sizes
from clusterlora.clustering.pieces import pieces_of
from clusterlora.clustering.summary import UNSTABLE
from clusterlora.errors import BadData, BadSettings
from clusterlora.ports.run_log import RunLog, SilentLog
from clusterlora.settings import ClusteringSettings
from clusterlora.values import Clustering, Dataset, Persona

log = logging.getLogger(__name__)

_RERUNS = 20
_DISTANCES_MIB = 64
"""Memory for the distances of the silhouette, which are those of all pairs."""
_STABILITIES = ("ari_seeds", "ari_bootstraps")

Labels = Int[np.ndarray, " persona"]
Features = Float[np.ndarray, "persona direction"]
Partition = Callable[[Features, int], Labels]
"""(features, seed) -> labels."""


def cluster_personas(dataset: Dataset, settings: ClusteringSettings, sources: Sources, run_log: RunLog | None = None) -> Clustering:
    """Return the clusters, smallest first, or in the order of `settings.sizes`; members in the order of their ids.

    What the settings leave open, the algorithm or the number of clusters, is what predicts held-out train answers best and is found again
    (`choice.best`). Where k is open and no clusters are worth having, all personas are one cluster.

    The result does not depend on the order of the personas in the data set. `quality` contains `silhouette`, `ari_seeds` and
    `ari_bootstraps`: mean adjusted Rand index with 20 partitions of other seeds and 20 of resampled responses; and `predicted`, the share
    of held-out train answers of `choice.Candidate`. `curve` has k, that share and the stability of every k that was tried with the
    algorithm. `map_2d` is the projection on the first two principal components.

    Raises:
        BadSettings: sizes do not sum to the number of personas, or k is larger than it.
        BadData: a persona lacks the data that the algorithm reads, or the personas have fewer distinct features than k.
    """
    personas = tuple(sorted(dataset.personas, key=lambda persona: persona.id))
    refuse_impossible_sizes(settings, len(personas))
    names = WITHOUT_EMBEDDINGS if settings.algorithm == AUTO else (settings.algorithm,)
    evidence = {name: ALGORITHMS[name](personas, sources) for name in names}
    measured = _measured(personas, settings, evidence, run_log or SilentLog())
    found = best(measured) if measured else None
    algorithm = found.algorithm if found else names[0]
    own_evidence = evidence[algorithm]
    features = feature_matrix(own_evidence)
    one_cluster = settings.sizes is None and settings.k is None and not (found and found.worth_having)
    k = 1 if one_cluster or not found else found.k
    labels = np.zeros(len(personas), dtype=np.int64) if k == 1 else _partition(settings, k)(features, settings.seed)
    quality = () if k == 1 else _quality(own_evidence, features, labels, _partition(settings, k), settings.seed)
    exchange_topics.cache_clear()
    for name, value in quality:
        if name in _STABILITIES and value < UNSTABLE:
            log.warning("clusters by %s are unstable: %s is %.2f, below %.1f", algorithm, name, value, UNSTABLE)
    return Clustering(
        algorithm=algorithm,
        members=tuple(tuple(p.id for p, label in zip(personas, labels, strict=True) if label == k) for k in range(labels.max() + 1)),
        quality=(*quality, *((("predicted", found.predicted),) if found and k > 1 else ())),
        map_2d=tuple((p.id, float(x), float(y)) for p, (x, y) in zip(personas, plane(features), strict=True)),
        curve=_curve(measured, algorithm) if settings.k is None and settings.sizes is None else (),
    )


def _measured(
    personas: tuple[Persona, ...], settings: ClusteringSettings, evidence: dict[str, Evidence], run_log: RunLog
) -> tuple[Candidate, ...]:
    """Return everything that the settings allow, measured; nothing where there are too few personas for two clusters."""
    n_distinct = {name: len(np.unique(feature_matrix(own), axis=0)) for name, own in evidence.items()}
    if settings.sizes is not None:
        ks = (len(settings.sizes),)
    elif settings.k is not None:
        ks = (settings.k,)
        if (most := max(n_distinct.values())) < settings.k:
            name = ", ".join(evidence)
            raise BadData(f"{len(personas)} personas look like only {most} by {name}, fewer than k={settings.k}; lower clustering.k")
    else:
        ks = tuple(range(2, min(LARGEST_K, len(personas) // settings.min_size, min(n_distinct.values())) + 1))
    run_log.phase("cluster", total=len(evidence) * len(ks), unit="partitions")
    return candidates(personas, evidence, ks, lambda features, k: _partition(settings, k)(features, settings.seed), run_log)


def _curve(measured: tuple[Candidate, ...], algorithm: str) -> tuple[tuple[int, float, float], ...]:
    return ((1, 0.0, 1.0), *((one.k, one.predicted, one.stability) for one in measured if one.algorithm == algorithm))


def refuse_impossible_sizes(settings: ClusteringSettings, n_personas: int) -> None:
    """Check that so many people can be clustered so. Raises BadSettings."""
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
    evidence: Evidence,
    features: Float[np.ndarray, "persona direction"],
    labels: Int[np.ndarray, " persona"],
    partition: Partition,
    seed: int,
) -> tuple[tuple[str, float], ...]:
    from sklearn import config_context
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    quality: list[tuple[str, float]] = []
    if 2 <= len(np.unique(labels)) < len(labels):
        with config_context(working_memory=_DISTANCES_MIB):
            quality.append(("silhouette", float(silhouette_score(features, labels))))
    other_seeds = [adjusted_rand_score(labels, partition(features, seed + 1 + rerun)) for rerun in range(_RERUNS)]
    quality.append(("ari_seeds", float(np.mean(other_seeds))))
    if pieces_of(evidence).counts.max() > 1:
        rng = np.random.default_rng(seed)
        bootstraps = [partition(feature_matrix(resampled(evidence, rng)), seed) for _ in range(_RERUNS)]
        quality.append(("ari_bootstraps", float(np.mean([adjusted_rand_score(labels, bootstrap) for bootstrap in bootstraps]))))
    return tuple(quality)


def plane(features: Float[np.ndarray, "persona direction"]) -> Float[np.ndarray, "persona 2"]:
    """Return the first two principal components; signs are fixed so that the largest loading of each is positive."""
    left, singular_values, right = np.linalg.svd(features, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.argmax(np.abs(right), axis=1)])
    plane = (left * singular_values * signs)[:, :2]
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
