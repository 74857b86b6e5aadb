"""Repetition within an answer."""

import numpy as np
from jaxtyping import Float

from clusterlora.data.words import n_grams, words
from clusterlora.evaluation.metric import Metric, Scorable

_N = 4


def repetition(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return the share of the answer's word 4-grams that repeat an earlier one, in 0..1; 0 with fewer than four words.

    Source: seq-rep-4 of Welleck et al. 2020.
    """
    grams_by_answer = [list(n_grams(words(text, code=True), _N)) for text in answers.texts]
    return np.array([1 - len(set(grams)) / len(grams) if grams else 0.0 for grams in grams_by_answer], dtype=np.float64)


REPETITION = Metric(name="repetition", label="repetition", higher_is_better=False, percent=True, score=repetition, can_decide=False)
