"""Distance of the expected rating from the reference."""

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric, Scorable


def mae(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return how far the mean rating under the model's probabilities is from the reference, in units of the ratings.

    Raises:
        BadData: the answers have no probabilities of ratings.
    """
    expected = answers.require_probabilities("mae").expected
    return np.abs(expected - np.array([float(reference) for reference in answers.references]))


MAE = Metric(name="mae", label="MAE", higher_is_better=False, score=mae, reads_answers=False, unit="rating units", tasks=("rating",))
