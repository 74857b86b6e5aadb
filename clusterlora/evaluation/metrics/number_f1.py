"""Agreement of the numbers that answer and reference contain, whatever they are about."""

import re
from collections import Counter

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric, Scorable

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def number_f1(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return F1 of the numbers per item, in 0..1, each counted as often as it stands there; `1,000` and `1000` are the same number.

    If the reference has no number, an answer without one scores 1, any other 0.
    """

    def of_pair(text: str, reference: str) -> float:
        expected, actual = numbers(reference), numbers(text)
        n_both = expected.total() + actual.total()
        return 2 * (expected & actual).total() / n_both if n_both else 1.0

    return np.array([of_pair(text, reference) for text, reference in zip(answers.texts, answers.references, strict=True)], dtype=np.float64)


def numbers(text: str) -> Counter[str]:
    """Return how often each number stands in a text, as digits without thousands separators."""
    return Counter(re.sub(r",(?=\d{3}(?!\d))", "", number) for number in _NUMBER.findall(text))


NUMBER_F1 = Metric(
    name="number_f1",
    label="number F1",
    higher_is_better=True,
    percent=True,
    score=number_f1,
    carried=lambda text: bool(numbers(text)),
)
