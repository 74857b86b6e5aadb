"""Share of items whose likeliest label is the reference."""

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric, Scorable


def accuracy(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return 1 where the likeliest label is the reference, 0 elsewhere.

    Raises:
        BadData: the answers have no probabilities of labels.
    """
    likeliest = answers.require_probabilities("accuracy").likeliest
    return np.array([float(a == b) for a, b in zip(likeliest, answers.references, strict=True)])


ACCURACY = Metric(
    name="accuracy", label="accuracy", higher_is_better=True, score=accuracy, percent=True, reads_answers=False, tasks=("label", "rating")
)
