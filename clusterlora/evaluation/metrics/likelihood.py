"""Likelihood of the reference under the answering model, per token: nothing has to be generated."""

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric, Scorable
from clusterlora.evaluation.metrics.nll import nll


def likelihood(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return the geometric mean of the probabilities of the reference's tokens, exp(-NLL), the reciprocal of the perplexity.

    Raises:
        BadData: as `nll`.
    """
    return np.exp(-nll(answers))


LIKELIHOOD = Metric(
    name="likelihood",
    label="likelihood per token",
    higher_is_better=True,
    score=likelihood,
    percent=True,
    reads_answers=False,
    guess=lambda n_tokens: 1 / n_tokens,
)
