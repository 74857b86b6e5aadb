"""How near the answer's length is to the reference's."""

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric, Scorable
from clusterlora.evaluation.words import words


def length_ratio(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return min(r, 1/r) per item, r being the answer's words by the reference's: 1 for the same length, in 0..1.

    Twice as long and half as long are equally wrong, so more is better and means make sense. Two texts without words are equally
    long; one without words scores 0.
    """
    lengths = [sorted((len(words(text)), len(words(reference)))) for text, reference in zip(answers.texts, answers.references, strict=True)]
    return np.array([shorter / longer if longer else 1.0 for shorter, longer in lengths], dtype=np.float64)


LENGTH_RATIO = Metric(name="length_ratio", label="length ratio", higher_is_better=True, score=length_ratio)
