"""The length of the prompt, i.e. the cost of prefill."""

import numpy as np
from jaxtyping import Float

from clusterlora.errors import BadData
from clusterlora.evaluation.metric import Metric, Scorable


def prompt_tokens(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return the tokens of each prompt: system turn, few-shot examples, and the dialogue so far.

    A prefix adapter adds none, because its keys and values are stored.

    Raises:
        BadData: the answers have none, or not one per item.
    """
    if answers.prompt_tokens is None or len(answers.prompt_tokens) != len(answers.references):
        n_values = "none" if answers.prompt_tokens is None else f"{len(answers.prompt_tokens)}"
        raise BadData(
            f"metric prompt_tokens needs the length of every prompt ({len(answers.references)}), and has {n_values}; run the model pass"
        )
    return np.asarray(answers.prompt_tokens, dtype=np.float64)


PROMPT_TOKENS = Metric(
    name="prompt_tokens",
    label="prompt tokens",
    higher_is_better=False,
    score=prompt_tokens,
    decimals=1,
    reads_answers=False,
    unit="tokens",
    can_decide=False,
)
