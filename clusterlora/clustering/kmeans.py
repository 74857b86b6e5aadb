"""k-means with free, minimum or exact cluster sizes."""

import warnings
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_MAX_ROUNDS = 50


def free_sizes(features: Float[np.ndarray, "persona direction"], k: int, *, seed: int, min_size: int = 1) -> Int[np.ndarray, " persona"]:
    """Return k-means labels, the smallest cluster first.

    No cluster is smaller than `min_size`, or than n / k if there are too few personas for that.
    """
    labels, centroids = _smallest_first(features, k, seed)
    minimum = min(min_size, len(features) // k)
    if minimum <= 1 or np.bincount(labels, minlength=k).min() >= minimum:
        return labels
    return _numbered(_assign(features, centroids, [minimum] * k), k)


def exact_sizes(features: Float[np.ndarray, "persona direction"], sizes: tuple[int, ...], *, seed: int) -> Int[np.ndarray, " persona"]:
    """Return labels of clusters with exactly these sizes, in this order; the k-means centroids get the sizes by rank."""
    _, free_centroids = _smallest_first(features, len(sizes), seed)
    return _assign(features, free_centroids[np.argsort(np.argsort(sizes, kind="stable"))], sizes)


def _assign(
    features: Float[np.ndarray, "persona direction"], centroids: Float[np.ndarray, "cluster direction"], minimums: Sequence[int]
) -> Int[np.ndarray, " persona"]:
    """Return labels of clusters with at least the minimum sizes.

    Alternates optimal assignment and centroid updates; both decrease the same sum of squares, so it terminates.
    Source: Bradley, Bennett & Demiriz 2000.
    """
    labels = np.full(len(features), -1)
    for _ in range(_MAX_ROUNDS):
        # |x|^2 is the same for every cluster and is omitted.
        squared_distance = np.sum(centroids**2, axis=1) - 2 * features @ centroids.T
        previous, labels = labels, minimum_cost_labels(squared_distance, minimums)
        if np.array_equal(labels, previous):
            break
        centroids = np.stack([features[labels == cluster].mean(axis=0) for cluster in range(len(minimums))])
    return labels


def minimum_cost_labels(costs: Float[np.ndarray, "persona cluster"], minimums: Sequence[int]) -> Int[np.ndarray, " persona"]:
    """Return the labels of minimum total cost among those with at least the minimum cluster sizes.

    Every persona starts in its cheapest cluster. Then each missing member is added by the cheapest chain of moves from a cluster with
    surplus members: a cluster that gives one away may take one from the next. In this order the total stays minimal for the sizes reached
    (successive shortest paths: Ahuja, Magnanti & Orlin 1993, section 9.7).
    """
    k = len(minimums)
    labels = costs.argmin(axis=1)
    counts = np.bincount(labels, minlength=k)
    mover, price = np.zeros((k, k), dtype=int), np.full((k, k), np.inf)
    rounding = 1e-12 * np.abs(costs[np.isfinite(costs)]).max(initial=0.0)
    changed = list(range(k))
    for receiving in np.repeat(np.arange(k), np.maximum(np.asarray(minimums) - counts, 0)).tolist():
        for cluster in changed:
            members = np.flatnonzero(labels == cluster)
            extra_cost = costs[members] - costs[members, cluster, None]
            price[cluster] = extra_cost.min(axis=0, initial=np.inf)
            mover[cluster] = members[extra_cost.argmin(axis=0)] if len(members) else 0
        changed = _cheapest_chain(price, counts > minimums, receiving, rounding)
        for giving, taking in pairwise(changed):
            labels[mover[giving, taking]] = taking
        counts[changed[0]] -= 1  # a receiving cluster never exceeds its minimum, so it gives nothing away
    return labels


def _cheapest_chain(
    price: Float[np.ndarray, "giving taking"], may_give: Bool[np.ndarray, " cluster"], receiving: int, rounding: float
) -> list[int]:
    """Return the clusters along the cheapest chain of moves, from one that may give to the receiving one (Bellman 1958, Ford 1956).

    Prices may be negative; cycles are not, except for rounding.
    """
    total, before = np.where(may_give, 0.0, np.inf), np.full(len(price), -1)
    while True:
        through = total[:, None] + price
        best = through.argmin(axis=0)
        better = through[best, np.arange(len(price))] < total - rounding
        if not better.any():
            break
        before[better], total[better] = best[better], through.min(axis=0)[better]
    chain = [receiving]
    while before[chain[0]] >= 0:
        chain.insert(0, int(before[chain[0]]))
    return chain


def _smallest_first(
    features: Float[np.ndarray, "persona direction"], k: int, seed: int
) -> tuple[Int[np.ndarray, " persona"], Float[np.ndarray, "cluster direction"]]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    # Threads meet after every pass over the points, and spin meanwhile: beside other processes two take eight times as long as one.
    with warnings.catch_warnings(), _thread_pools().limit(limits=1):
        # A bootstrap sample can have fewer distinct points than k, which leaves clusters empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(k, n_init=10, random_state=seed).fit(features)
    labels = np.asarray(fitted.labels_)
    order = _order(labels, k)
    return np.argsort(order)[labels], np.asarray(fitted.cluster_centers_)[order]


@cache
def _thread_pools() -> "ThreadpoolController":
    """Return the pools of threads that KMeans computes with. To find them takes as long as a small KMeans."""
    import sklearn.cluster  # noqa: F401  only what is loaded is found
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _numbered(labels: Int[np.ndarray, " persona"], k: int) -> Int[np.ndarray, " persona"]:
    return np.argsort(_order(labels, k))[labels]


def _order(labels: Int[np.ndarray, " persona"], k: int) -> Int[np.ndarray, " cluster"]:
    """Return the clusters by size, the smallest first, equal ones by their first persona."""
    first_persona = np.array([np.argmax(labels == cluster) for cluster in range(k)])
    return np.lexsort(np.stack([first_persona, np.bincount(labels, minlength=k)]))
