"""Similarity of the lengths of answer and reference."""

import numpy as np
from jaxtyping import Float

from clusterlora.data.words import words
from clusterlora.evaluation.metric import Metric, Scorable


def length_ratio(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return min(r, 1/r) per item, in 0..1, where r is the ratio of the answer's words to the reference's.

    Twice as long and half as long score the same. Two texts without words score 1; if only one has words, it scores 0.
    """

    def n_words(text: str) -> int:
        return len(words(text, code=True))

    lengths = [sorted((n_words(text), n_words(reference))) for text, reference in zip(answers.texts, answers.references, strict=True)]
    return np.array([shorter / longer if longer else 1.0 for shorter, longer in lengths], dtype=np.float64)


LENGTH_RATIO = Metric(name="length_ratio", label="length ratio", higher_is_better=True, score=length_ratio)
