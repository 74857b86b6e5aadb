"""Moving personas to the cluster whose adapter predicts them best."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from clusterlora.clustering.kmeans import cheapest

MARGIN_SE = 1.0


def reassigned(
    losses: Sequence[Float[np.ndarray, "_item cluster"]], labels: Int[np.ndarray, " persona"], least: Sequence[int]
) -> Int[np.ndarray, " persona"]:
    """Return the labels after one round: everybody's cheapest cluster, among all ways that leave each cluster its least size.

    What a cluster costs a persona is the mean loss of its adapter on the persona's val items; one that is not its own costs a standard
    error of the paired difference more, so that nobody moves by chance (hysteresis).

    Args:
        losses: per persona, the loss of each item under each cluster's adapter.
        labels: the clusters that the adapters were trained on.
        least: the sizes that clusters must have; exact ones when they sum to the number of personas.
    """
    costs = np.stack([_costs(own, int(label)) for own, label in zip(losses, labels, strict=True)])
    return cheapest(costs, least)


def _costs(losses: Float[np.ndarray, "item cluster"], label: int) -> Float[np.ndarray, " cluster"]:
    differences = losses - losses[:, [label]]
    if len(losses) < 2:  # no standard error: nobody moves
        return np.where(np.arange(losses.shape[1]) == label, losses[0], np.inf)
    return losses.mean(axis=0) + MARGIN_SE * differences.std(axis=0, ddof=1) / np.sqrt(len(losses))
