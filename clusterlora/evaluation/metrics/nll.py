"""Negative log-likelihood of the reference under the answering model."""

import math

import numpy as np
from jaxtyping import Float

from clusterlora.errors import BadData
from clusterlora.evaluation.metric import Metric, Scorable


def nll(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return the mean negative log-likelihood per reference token, in nats.

    Raises:
        BadData: the answers have none, or not one per item.
    """
    if answers.nll is None or len(answers.nll) != len(answers.references):
        n_values = "none" if answers.nll is None else f"{len(answers.nll)}"
        raise BadData(
            f"metric nll needs one negative log-likelihood per item ({len(answers.references)}), and has {n_values}; run the model pass"
        )
    return np.asarray(answers.nll, dtype=np.float64)


NLL = Metric(name="nll", label="NLL per token", higher_is_better=False, score=nll, reads_answers=False, unit="nats", guess=math.log)
