"""chrF: overlap of answer and reference as runs of characters, right for any language and forgiving of endings (Popović 2015)."""

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric, Scorable

_LONGEST_RUN = 6
_BETA = 2.0


def chrf(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return chrF2 per item, in 0..1: runs of 1 to 6 characters, white space aside, recall weighing twice as much as precision.

    Runs longer than the shorter of the two texts can be in neither, so they are not averaged in: a short answer equal to its
    reference scores 1. An answer without characters scores 0. Source: Popović 2016 for the weights.
    """
    from nltk.translate.chrf_score import sentence_chrf  # half a second

    def of_pair(text: str, reference: str) -> float:
        longest = min(_LONGEST_RUN, len(text), len(reference))
        return sentence_chrf(reference, text, max_len=longest, beta=_BETA, ignore_whitespace=False) if longest else 0.0

    pairs = zip(answers.texts, answers.references, strict=True)
    return np.array([of_pair("".join(text.split()), "".join(reference.split())) for text, reference in pairs], dtype=np.float64)


CHRF = Metric(name="chrf", label="chrF", higher_is_better=True, percent=True, score=chrf)
