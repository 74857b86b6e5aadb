"""Selection among a method's arms on val scores; test scores are no argument. The unit is the dialogue: its turns share its luck."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats


def select_arm(val_scores: Sequence[Float[np.ndarray, " dialogue"]], *, higher_is_better: bool, margin_se: float) -> int:
    """Return the index of the arm to answer with; 0 is the default arm.

    Another arm is chosen if its mean is better than the default's by more than `margin_for` standard errors of the paired difference; of
    several, the one with the best mean. A single val dialogue has no standard error, so with a margin the default is chosen; so it is
    without a dialogue.

    Args:
        val_scores: one array per arm, the means of the same val dialogues in the same order (`dialogues.dialogue_means`).
        margin_se: standard errors by which a single other arm has to be better; 0 asks for none.
    """
    sign = 1.0 if higher_is_better else -1.0
    best, best_gain = 0, 0.0
    if len(val_scores) < 2 or len(val_scores[0]) < (2 if margin_se else 1):
        return 0
    margin = margin_for(len(val_scores) - 1, len(val_scores[0]), margin_se) if margin_se else 0.0
    for arm in range(1, len(val_scores)):
        delta = sign * (val_scores[arm] - val_scores[0])
        gain = float(delta.mean())
        needed = margin * float(delta.std(ddof=1)) / np.sqrt(len(delta)) if margin else 0.0
        if gain > needed and gain > best_gain:
            best, best_gain = arm, gain
    return best


def select_for_all(val_scores: Sequence[Sequence[Float[np.ndarray, " _item"]]], *, higher_is_better: bool) -> int:
    """Return the index of the option with the best mean over personas of their mean val scores; of equal ones the first.

    Args:
        val_scores: per option, one array of val items for each persona, in the same order.
    """
    sign = 1.0 if higher_is_better else -1.0
    means = [float(np.mean([scores.mean() for scores in of_option if scores.size])) for of_option in val_scores]
    return int(np.argmax(sign * np.round(means, 9)))


def margin_for(n_arms: int, n_dialogues: int, margin_se: float) -> float:
    """Return by how many standard errors one of `n_arms` arms has to be better than the default, on two dialogues or more.

    Where no arm is better, one of many exceeds a given margin by luck more often than a single one does. The margin grows so that any of
    them does so no more often than a single arm exceeds `margin_se` (Sidak 1967; arms that resemble each other do so less often).
    """
    freedom = n_dialogues - 1
    alone = float(stats.t.sf(margin_se, freedom))
    return margin_se if n_arms == 1 else float(stats.t.isf(-np.expm1(np.log1p(-alone) / n_arms), freedom))
