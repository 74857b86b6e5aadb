"""Reassignment of personas to the cluster whose adapter predicts their answers best."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from clusterlora.clustering.kmeans import minimum_cost_labels

MARGIN_SE = 1.0


def reassign(
    losses: Sequence[Float[np.ndarray, "_dialogue cluster"]], labels: Int[np.ndarray, " persona"], minimums: Sequence[int]
) -> Int[np.ndarray, " persona"]:
    """Return the labels of minimum total cost with at least the minimum cluster sizes.

    The cost of a cluster for a persona is the mean loss of its adapter on the persona's val dialogues. Another cluster than the current one
    costs a standard error of the paired difference more, so that chance moves nobody (hysteresis).

    Args:
        losses: per persona, the loss of each val dialogue, a mean over its turns, with each cluster's adapter.
        labels: the clusters on which the adapters were trained.
        minimums: minimum cluster sizes; exact ones if they sum to the number of personas.
    """
    costs = np.stack([_costs(own, int(label)) for own, label in zip(losses, labels, strict=True)])
    return minimum_cost_labels(costs, minimums)


def _costs(losses: Float[np.ndarray, "dialogue cluster"], label: int) -> Float[np.ndarray, " cluster"]:
    differences = losses - losses[:, [label]]
    if len(losses) < 2:  # no standard error: the persona stays
        return np.where(np.arange(losses.shape[1]) == label, losses[0], np.inf)
    return losses.mean(axis=0) + MARGIN_SE * differences.std(axis=0, ddof=1) / np.sqrt(len(losses))
