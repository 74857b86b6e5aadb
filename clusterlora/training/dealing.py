"""Work dealt to a number of hands: a study's adapters to its workers, and those of a pass to threads."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def deal(work: Mapping[T, int], n_hands: int) -> list[list[T]]:
    """Return the things in as many hands, what is most work first, each to the hand that has least to do; a hand may stay empty."""
    hands: list[list[T]] = [[] for _ in range(n_hands)]
    loads = [0] * n_hands
    for thing in sorted(work, key=work.__getitem__, reverse=True):
        least = loads.index(min(loads))
        hands[least].append(thing)
        loads[least] += work[thing]
    return hands
