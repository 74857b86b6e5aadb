"""chrF: character n-gram F-score of answer and reference, for any language and tolerant of inflection (Popović 2015)."""

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric, Scorable

_MAX_N = 6
_BETA = 2.0


def chrf(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return chrF2 per item, in 0..1: character n-grams of n = 1 to 6 without white space, recall weighted twice as much as precision.

    n is at most the length of the shorter text, so a short answer equal to its reference scores 1. An answer without characters scores 0.
    Source: Popović 2016 for the weights.
    """
    from nltk.translate.chrf_score import sentence_chrf  # the import takes half a second

    def of_pair(text: str, reference: str) -> float:
        max_n = min(_MAX_N, len(text), len(reference))
        return sentence_chrf(reference, text, max_len=max_n, beta=_BETA, ignore_whitespace=False) if max_n else 0.0

    pairs = zip(answers.texts, answers.references, strict=True)
    return np.array([of_pair("".join(text.split()), "".join(reference.split())) for text, reference in pairs], dtype=np.float64)


CHRF = Metric(name="chrf", label="chrF", higher_is_better=True, percent=True, score=chrf)
