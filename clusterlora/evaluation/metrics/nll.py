"""Negative log-likelihood of the reference: how surprised the model is by what the person really got as an answer."""

import numpy as np
from jaxtyping import Float

from clusterlora.errors import BadData
from clusterlora.evaluation.metric import Metric, Scorable


def nll(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return the mean negative log-likelihood per reference token, in nats.

    Raises:
        BadData: the model pass gave none, or not one per item.
    """
    if answers.nll is None or len(answers.nll) != len(answers.references):
        found = "none" if answers.nll is None else f"{len(answers.nll)} values"
        raise BadData(
            f"metric nll needs one negative log-likelihood per item ({len(answers.references)}), found {found}; run the model pass"
        )
    return np.asarray(answers.nll, dtype=np.float64)


NLL = Metric(name="nll", label="NLL per token", higher_is_better=False, score=nll)
