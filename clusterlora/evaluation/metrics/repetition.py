"""How much an answer says again what it has said."""

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric, Scorable
from clusterlora.evaluation.words import n_grams, words

_RUN = 4


def repetition(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return the share of the answer's runs of four words that stood in it before, in 0..1; 0 with fewer than four words.

    Source: seq-rep-4 of Welleck et al. 2020.
    """
    runs = [list(n_grams(words(text), _RUN)) for text in answers.texts]
    return np.array([1 - len(set(own)) / len(own) if own else 0.0 for own in runs], dtype=np.float64)


REPETITION = Metric(name="repetition", label="repetition", higher_is_better=False, percent=True, score=repetition)
