"""Root of the mean squared distance of the expected rating from the reference."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric
from clusterlora.evaluation.metrics.mae import mae


def rmse(
    _answers: Sequence[str], _references: Sequence[str], scores: Float[np.ndarray, " item"], weights: Float[np.ndarray, " item"]
) -> float:
    """Return the root of the weighted mean of the squared item scores, each of which is the distance from the reference."""
    return float(np.sqrt(np.sum(weights * scores**2)))


RMSE = Metric(
    name="rmse",
    label="RMSE",
    higher_is_better=False,
    score=mae,
    reads_answers=False,
    unit="rating units",
    can_decide=False,
    tasks=("rating",),
    pooled=rmse,
)
