"""Whether an answer sets numeric parameters to the reference's values."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.actions import Actions, actions, names_a_device
from clusterlora.evaluation.metric import Metric, Scorable


def numeric_accuracy(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return the share of the reference's numeric parameters that the answer sets to the same value, per item, in 0..1.

    If the reference sets no number, an answer that sets none scores 1, any other 0.
    """

    def of_pair(text: str, reference: str) -> float:
        expected, actual = _numbers(actions(reference)), _numbers(actions(text))
        if not expected:
            return float(not actual)
        return sum(actual.get(parameter) == number for parameter, number in expected.items()) / len(expected)

    return np.array([of_pair(text, reference) for text, reference in zip(answers.texts, answers.references, strict=True)], dtype=np.float64)


def _numbers(parsed: Actions) -> Mapping[tuple[str, str], float]:
    return {parameter: value for parameter, value in parsed.settings.items() if not isinstance(value, str)}


NUMERIC_ACCURACY = Metric(
    name="numeric_accuracy",
    label="numeric accuracy",
    higher_is_better=True,
    percent=True,
    score=numeric_accuracy,
    carried=lambda text: names_a_device(text) and bool(_numbers(actions(text))),
)
