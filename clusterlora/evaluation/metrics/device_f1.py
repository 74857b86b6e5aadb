"""Agreement of the devices that answer and reference act on."""

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.actions import actions, overlap_f1
from clusterlora.evaluation.metric import Metric, Scorable


def device_f1(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return F1 of the named devices per item, in 0..1.

    If the reference names no device, an answer that names none scores 1, any other 0.
    """
    pairs = zip(answers.texts, answers.references, strict=True)
    return np.array([overlap_f1(actions(text).devices, actions(reference).devices) for text, reference in pairs], dtype=np.float64)


DEVICE_F1 = Metric(name="device_f1", label="device F1", higher_is_better=True, percent=True, score=device_f1)
