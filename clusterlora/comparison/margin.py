"""The margin of equivalence of a metric, one rule for every comparison."""

from collections.abc import Sequence

import numpy as np

from clusterlora.evaluation.metrics import METRICS
from clusterlora.values import EvaluationRow


def margin_of(metric: str, setting: float, rows: Sequence[EvaluationRow], reference: str = "unified") -> float:
    """Return the margin of equivalence in units of a metric, for a setting in hundredths.

    A likelihood per token may be 2 % or 60 %, by base and language: of it, the margin is that share of what the reference scores.
    """
    if not (METRICS[metric].guess and METRICS[metric].percent and rows):
        return setting / 100
    scores = [row.scores[metric] for row in rows if row.method == reference] or [row.scores[metric] for row in rows]
    return setting / 100 * float(np.mean(scores))
