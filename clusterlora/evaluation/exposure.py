"""Exposure: how much likelier a model finds a planted string than others drawn like it.

Source: Carlini, Liu, Erlingsson, Kos & Song 2019, "The Secret Sharer", sections 4.2 and 4.3. A canary's rank among all candidates is
estimated from a sample of them.
"""

import numpy as np
from jaxtyping import Float

from clusterlora.errors import BadData


def exposure(canary: float, others: Float[np.ndarray, " candidate"]) -> float:
    """Return log2 of the number of candidates minus log2 of the canary's rank among them, in bits.

    The candidates are the canary and the others; rank 1 is the likeliest, and candidates of equal loss share their mean rank. A canary of n
    candidates has at most log2(n); one that was never seen has a uniform rank, and so `exposure_at_chance(n - 1)` on average.

    Args:
        canary: loss of the planted string (log-perplexity).
        others: losses of strings drawn in the same way that were never planted.

    Raises:
        BadData: there are no others, or a loss is no number.
    """
    return float(np.log2(len(others) + 1) - np.log2(_rank(canary, others)))


def chance_of_rank(canary: float, others: Float[np.ndarray, " candidate"]) -> float:
    """Return the probability that a string which was never seen ranks as high as this canary: its rank over the number of candidates.

    Errors as `exposure`.
    """
    return _rank(canary, others) / (len(others) + 1)


def exposure_at_chance(n_others: int) -> float:
    """Return the mean exposure of a string that was never seen among so many others, in bits; log2(e) = 1.44 when they are many."""
    return float(np.log2(n_others + 1) - np.log2(np.arange(1, n_others + 2)).mean())


def _rank(canary: float, others: Float[np.ndarray, " candidate"]) -> float:
    if len(others) == 0:
        raise BadData("exposure needs candidates that were never planted; draw at least one")
    if not (np.isfinite(canary) and np.isfinite(others).all()):
        raise BadData("exposure ranks losses, and one of these is no number; leave out strings that the model cannot score")
    return float(1 + (others < canary).sum() + (others == canary).sum() / 2)
