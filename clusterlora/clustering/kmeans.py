"""k-means, with free, least or exact cluster sizes. Labels come out in the order clusters are numbered in."""

import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

_MAX_ROUNDS = 50


def free_sizes(features: Float[np.ndarray, "persona dim"], k: int, *, seed: int, min_size: int = 1) -> Int[np.ndarray, " persona"]:
    """Return k-means labels, the smallest cluster first: cluster 0 is the cheapest to try something on.

    No cluster is smaller than `min_size`, or than the k-th part of the personas where they do not suffice.
    """
    labels, centroids = _smallest_first(features, k, seed)
    least = min(min_size, len(features) // k)
    if least <= 1 or np.bincount(labels, minlength=k).min() >= least:
        return labels
    return _numbered(_assign(features, centroids, [least] * k), k)


def exact_sizes(features: Float[np.ndarray, "persona dim"], sizes: tuple[int, ...], *, seed: int) -> Int[np.ndarray, " persona"]:
    """Return labels of clusters that have exactly these sizes, in this order, from free k-means centroids that take the sizes by rank."""
    _, free_centroids = _smallest_first(features, len(sizes), seed)
    return _assign(features, free_centroids[np.argsort(np.argsort(sizes, kind="stable"))], sizes)


def _assign(
    features: Float[np.ndarray, "persona dim"], centroids: Float[np.ndarray, "cluster dim"], least: Sequence[int]
) -> Int[np.ndarray, " persona"]:
    """Return labels of clusters with at least these sizes.

    Alternates optimal assignment with moving centroids; both lower the same sum of squares, so it ends.
    Source: Bradley, Bennett & Demiriz 2000.
    """
    labels = np.full(len(features), -1)
    for _ in range(_MAX_ROUNDS):
        # |x|^2 is the same in every cluster and left out.
        squared_distance = np.sum(centroids**2, axis=1) - 2 * features @ centroids.T
        previous, labels = labels, cheapest(squared_distance, least)
        if np.array_equal(labels, previous):
            break
        centroids = np.stack([features[labels == cluster].mean(axis=0) for cluster in range(len(least))])
    return labels


def cheapest(costs: Float[np.ndarray, "persona cluster"], least: Sequence[int]) -> Int[np.ndarray, " persona"]:
    """Return the labels of least total cost among those with at least these cluster sizes.

    Everybody begins in the cheapest cluster. Then clusters that lack members get them one at a time, each along the cheapest chain of moves
    that begins where there are enough: what is taken from one cluster it may take from another. Chains in this order keep the total the
    least for the sizes reached (successive shortest paths: Ahuja, Magnanti & Orlin 1993, section 9.7).
    """
    k = len(least)
    labels = costs.argmin(axis=1)
    counts = np.bincount(labels, minlength=k)
    mover, price = np.zeros((k, k), dtype=int), np.full((k, k), np.inf)
    rounding = 1e-12 * np.abs(costs[np.isfinite(costs)]).max(initial=0.0)
    changed = list(range(k))
    for receiving in np.repeat(np.arange(k), np.maximum(np.asarray(least) - counts, 0)).tolist():
        for cluster in changed:
            members = np.flatnonzero(labels == cluster)
            more = costs[members] - costs[members, cluster, None]
            price[cluster] = more.min(axis=0, initial=np.inf)
            mover[cluster] = members[more.argmin(axis=0)] if len(members) else 0
        changed = _cheapest_chain(price, counts > least, receiving, rounding)
        for giving, taking in pairwise(changed):
            labels[mover[giving, taking]] = taking
        counts[changed[0]] -= 1  # one that receives never has more than its least: it may not give
    return labels


def _cheapest_chain(
    price: Float[np.ndarray, "giving taking"], may_give: Bool[np.ndarray, " cluster"], receiving: int, rounding: float
) -> list[int]:
    """Return the clusters along the cheapest chain of moves, from one that may give to the receiving one (Bellman 1958, Ford 1956).

    Prices may be below zero; no round trip is but by rounding.
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
    features: Float[np.ndarray, "persona dim"], k: int, seed: int
) -> tuple[Int[np.ndarray, " persona"], Float[np.ndarray, "cluster dim"]]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Fewer distinct points than k, which a bootstrap can produce, leaves clusters empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(k, n_init=10, random_state=seed).fit(features)  # pyright: ignore[reportArgumentType] (n_init is no str)
    labels = np.asarray(fitted.labels_)
    order = _order(labels, k)
    return np.argsort(order)[labels], np.asarray(fitted.cluster_centers_)[order]


def _numbered(labels: Int[np.ndarray, " persona"], k: int) -> Int[np.ndarray, " persona"]:
    return np.argsort(_order(labels, k))[labels]


def _order(labels: Int[np.ndarray, " persona"], k: int) -> Int[np.ndarray, " cluster"]:
    """Return the clusters, the smallest first, equal ones by their first persona."""
    first_persona = np.array([np.argmax(labels == cluster) for cluster in range(k)])
    return np.lexsort(np.stack([first_persona, np.bincount(labels, minlength=k)]))
