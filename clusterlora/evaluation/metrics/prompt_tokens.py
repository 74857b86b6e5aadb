"""What an answer costs before it begins: the tokens that the model reads."""

import numpy as np
from jaxtyping import Float

from clusterlora.errors import BadData
from clusterlora.evaluation.metric import Metric, Scorable


def prompt_tokens(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return the tokens of each prompt: system turn, own exchanges where a method shows them, and the dialogue so far.

    A prefix adds none: its keys and values are computed once, not read.

    Raises:
        BadData: the model pass gave none, or not one per item.
    """
    if answers.prompt_tokens is None or len(answers.prompt_tokens) != len(answers.references):
        found = "none" if answers.prompt_tokens is None else f"{len(answers.prompt_tokens)} values"
        raise BadData(
            f"metric prompt_tokens needs the length of every prompt ({len(answers.references)}), found {found}; run the model pass"
        )
    return np.asarray(answers.prompt_tokens, dtype=np.float64)


PROMPT_TOKENS = Metric(name="prompt_tokens", label="prompt tokens", higher_is_better=False, score=prompt_tokens)
