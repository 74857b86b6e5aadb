"""How often a language model prefers an answer to unified's, of two orders of each pair."""

import numpy as np
from jaxtyping import Float

from clusterlora.errors import BadData
from clusterlora.evaluation.metric import Metric, Scorable


def judge(_answers: Scorable) -> Float[np.ndarray, " item"]:
    """Refuse: an answer alone has no preference. `stages/pairwise.py` scores pairs when methods are compared.

    Raises:
        BadData: always.
    """
    raise BadData("metric judge compares two answers, and is computed when methods are compared; do not score answers by it")


JUDGE = Metric(
    name="judge",
    label="preferred to unified by the judge",
    higher_is_better=True,
    score=judge,
    percent=True,
    can_decide=False,
    pairwise=True,
)
