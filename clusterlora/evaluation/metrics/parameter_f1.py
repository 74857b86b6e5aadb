"""Whether an answer sets the parameters that the reference sets."""

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.actions import Actions, actions, overlap_f1
from clusterlora.evaluation.metric import Metric, Scorable


def parameter_f1(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return F1 of the parameters set, per item, in 0..1.

    A parameter with a word for a value (mode, colour, source) must have the same word; whether a number is right is `numeric_accuracy`.
    Where the reference sets nothing, an answer that sets nothing either scores 1 and any other 0.
    """
    pairs = zip(answers.texts, answers.references, strict=True)
    return np.array(
        [overlap_f1(_parameters(actions(text)), _parameters(actions(reference))) for text, reference in pairs], dtype=np.float64
    )


def _parameters(found: Actions) -> frozenset[tuple[str, str, str]]:
    return frozenset(
        (device, parameter, value if isinstance(value, str) else "number") for (device, parameter), value in found.settings.items()
    )


PARAMETER_F1 = Metric(name="parameter_f1", label="parameter F1", higher_is_better=True, percent=True, score=parameter_f1)
