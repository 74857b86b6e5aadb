"""k-means, with free or with exact cluster sizes. Labels come out in the order clusters are numbered in."""

import warnings

import numpy as np
from jaxtyping import Float, Int

_MAX_ROUNDS = 50


def free_sizes(features: Float[np.ndarray, "persona dim"], k: int, *, seed: int) -> Int[np.ndarray, " persona"]:
    """Return k-means labels, the smallest cluster first: cluster 0 is the cheapest to try something on."""
    labels, _ = _smallest_first(features, k, seed)
    return labels


def exact_sizes(features: Float[np.ndarray, "persona dim"], sizes: tuple[int, ...], *, seed: int) -> Int[np.ndarray, " persona"]:
    """Return labels of clusters that have exactly these sizes, in this order.

    Alternates optimal assignment (each centroid offers as many seats as its cluster's size) with moving centroids, from free
    k-means centroids that take the sizes by rank. Both steps lower the same sum of squares, so it ends.
    Source: Bradley, Bennett & Demiriz 2000, with equality constraints.
    """
    from scipy.optimize import linear_sum_assignment

    _, free_centroids = _smallest_first(features, len(sizes), seed)
    centroids = free_centroids[np.argsort(np.argsort(sizes, kind="stable"))]
    cluster_of_seat = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.full(len(features), -1)
    for _ in range(_MAX_ROUNDS):
        # |x|^2 is the same for every seat of a persona and left out.
        squared_distance = np.sum(centroids**2, axis=1) - 2 * features @ centroids.T
        persona, seat = linear_sum_assignment(squared_distance[:, cluster_of_seat])
        previous, labels = labels, np.empty_like(labels)
        labels[persona] = cluster_of_seat[seat]
        if np.array_equal(labels, previous):
            break
        centroids = np.stack([features[labels == cluster].mean(axis=0) for cluster in range(len(sizes))])
    return labels


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
    sizes = np.bincount(labels, minlength=k)
    first_persona = np.array([np.argmax(labels == cluster) for cluster in range(k)])
    order = np.lexsort(np.stack([first_persona, sizes]))
    return np.argsort(order)[labels], np.asarray(fitted.cluster_centers_)[order]
