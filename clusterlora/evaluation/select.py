"""Selection among a method's arms on val scores; test scores are no argument."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def select_arm(val_scores: Sequence[Float[np.ndarray, " item"]], *, higher_is_better: bool, margin_se: float) -> int:
    """Return the index of the arm to answer with; 0 is the default arm.

    Another arm is chosen if its mean is better than the default's by more than `margin_se` standard errors of the paired difference; of
    several, the one with the best mean. A single val item has no standard error, so with a margin the default is chosen.

    Args:
        val_scores: one array per arm, the same val items in the same order.
    """
    sign = 1.0 if higher_is_better else -1.0
    best, best_gain = 0, 0.0
    for arm in range(1, len(val_scores)):
        delta = sign * (val_scores[arm] - val_scores[0])
        gain = float(delta.mean())
        if margin_se:
            if len(delta) < 2:
                continue
            needed = margin_se * float(delta.std(ddof=1)) / np.sqrt(len(delta))
        else:
            needed = 0.0
        if gain > needed and gain > best_gain:
            best, best_gain = arm, gain
    return best
