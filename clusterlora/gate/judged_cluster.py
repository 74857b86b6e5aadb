"""The cluster that the gate judges: neither the outliers nor nearly everybody, and enough people for a verdict."""

from collections.abc import Sequence
from statistics import median

from clusterlora.settings import ClusteringSettings

LEAST_PEOPLE = 8
"""Fewer people than this decide by luck: where half of them gain by chance, 60 % of 3 or 5 do in half of all trials."""


def judged_cluster(sizes: Sequence[int], settings: ClusteringSettings) -> int | None:
    """Return the number of the cluster that the gate judges; None where it has too little to judge, so that there is no gate.

    With `settings.sizes` it is cluster 0, whose size the settings name. Otherwise it is the cluster whose size is nearest the median of
    all, the larger of two that are as near; one of fewer than `LEAST_PEOPLE` gives way to the nearest that has them, and where none has,
    nothing is judged.

    Args:
        sizes: personas in each cluster.
    """
    if len(sizes) < 2:
        return None
    if settings.sizes is not None:
        return 0
    middle = median(sizes)
    enough = [number for number, size in enumerate(sizes) if size >= LEAST_PEOPLE]
    return min(enough, key=lambda number: (abs(sizes[number] - middle), -sizes[number], number), default=None)


def words(sizes: Sequence[int], settings: ClusteringSettings) -> str:
    """Return which cluster the gate judges and why, in a sentence; it is known before anything is trained."""
    number = judged_cluster(sizes, settings)
    if len(sizes) < 2:
        return "There is no gate: without clusters it has nothing to judge."
    if number is None:
        return (
            f"There is no gate, and all clusters are trained: the largest has {max(sizes)} people, and a verdict on fewer than "
            f"{LEAST_PEOPLE} is luck; set clustering.k lower, or clustering.sizes to judge cluster 0 all the same."
        )
    size = sizes[number]
    if settings.sizes is not None:
        warning = f", fewer than the {LEAST_PEOPLE} without which a verdict is luck" if size < LEAST_PEOPLE else ""
        return f"The gate judges cluster 0, whose size is given: {size} people{warning}."
    nearest = min(abs(other - median(sizes)) for other in sizes)
    if abs(size - median(sizes)) > nearest:
        return (
            f"The gate judges cluster {number} of {size} people: of those with at least {LEAST_PEOPLE}, fewer being too few for a verdict, "
            "its size is nearest the median."
        )
    return f"The gate judges cluster {number} of {size} people, whose size is nearest the median."
