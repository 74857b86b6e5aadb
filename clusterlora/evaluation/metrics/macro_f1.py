"""Mean over labels of the F1 of each: rare labels count as much as frequent ones."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric
from clusterlora.evaluation.metrics.accuracy import accuracy


def macro_f1(
    answers: Sequence[str], references: Sequence[str], _scores: Float[np.ndarray, " item"], weights: Float[np.ndarray, " item"]
) -> float:
    """Return the mean of every label's F1 over the labels that are answered or are a reference; one never answered right has 0.

    Source: Opitz & Burst 2019, eq. 2 (the mean of F1s, not the F1 of means).
    """
    from sklearn.metrics import f1_score  # imported late: it takes a second

    # The stubs take words alone for `zero_division`.
    score = f1_score(list(references), list(answers), average="macro", sample_weight=weights, zero_division=0.0)  # pyrefly: ignore[bad-argument-type]
    return float(score)


MACRO_F1 = Metric(
    name="macro_f1",
    label="macro F1",
    higher_is_better=True,
    score=accuracy,
    percent=True,
    reads_answers=False,
    can_decide=False,
    tasks=("label", "rating"),
    pooled=macro_f1,
)
