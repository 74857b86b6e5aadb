"""Load balancing: a study's adapters over its runs, and the adapters of one forward and backward pass over threads."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def partition_by_load(load_by_item: Mapping[T, int], n_bins: int) -> list[list[T]]:
    """Return a greedy longest-first partition of the items into `n_bins` bins; bins may be empty.

    Source: Graham 1969, longest processing time first.
    """
    bins: list[list[T]] = [[] for _ in range(n_bins)]
    loads = [0] * n_bins
    for item in sorted(load_by_item, key=load_by_item.__getitem__, reverse=True):
        lightest = loads.index(min(loads))
        bins[lightest].append(item)
        loads[lightest] += load_by_item[item]
    return bins
