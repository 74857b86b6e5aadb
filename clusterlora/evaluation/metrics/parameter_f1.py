"""Agreement of the parameters that answer and reference set."""

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.actions import Actions, actions, names_a_device, overlap_f1
from clusterlora.evaluation.metric import Metric, Scorable


def parameter_f1(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return F1 of the set parameters per item, in 0..1.

    A word value (mode, colour, source) must be equal to count; numbers are compared by `numeric_accuracy`. If the reference sets nothing,
    an answer that sets nothing scores 1, any other 0.
    """
    pairs = zip(answers.texts, answers.references, strict=True)
    return np.array(
        [overlap_f1(_parameters(actions(text)), _parameters(actions(reference))) for text, reference in pairs], dtype=np.float64
    )


def _parameters(parsed: Actions) -> frozenset[tuple[str, str, str]]:
    return frozenset(
        (device, parameter, value if isinstance(value, str) else "number") for (device, parameter), value in parsed.settings.items()
    )


PARAMETER_F1 = Metric(
    name="parameter_f1",
    label="parameter F1",
    higher_is_better=True,
    percent=True,
    score=parameter_f1,
    carried=lambda text: names_a_device(text) and bool(actions(text).settings),
)
