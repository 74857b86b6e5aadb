"""Whether an answer sets numbers to what the reference sets them to."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.actions import Actions, actions
from clusterlora.evaluation.metric import Metric, Scorable


def numeric_accuracy(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return the share of the reference's numbers that the answer gives to the same parameter of the same device, per item, in 0..1.

    Where the reference sets no number, an answer that sets none either scores 1 and any other 0.
    """

    def of_pair(text: str, reference: str) -> float:
        wanted, found = _numbers(actions(reference)), _numbers(actions(text))
        if not wanted:
            return float(not found)
        return sum(found.get(parameter) == number for parameter, number in wanted.items()) / len(wanted)

    return np.array([of_pair(text, reference) for text, reference in zip(answers.texts, answers.references, strict=True)], dtype=np.float64)


def _numbers(found: Actions) -> Mapping[tuple[str, str], float]:
    return {parameter: value for parameter, value in found.settings.items() if not isinstance(value, str)}


NUMERIC_ACCURACY = Metric(name="numeric_accuracy", label="numeric accuracy", higher_is_better=True, percent=True, score=numeric_accuracy)
