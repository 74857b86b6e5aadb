"""The share of an answer that is copied verbatim from the persona's own train responses."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from clusterlora.data.words import n_grams, words
from clusterlora.evaluation.metric import Metric, Scorable
from clusterlora.evaluation.train_responses import TrainResponses

_N = 8


def copy_rate(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return the share of the answer's word 8-grams that occur in a train response of its persona, in 0..1.

    Answers of fewer than eight words score 0, because short answers to equal requests are equal anyway; so do personas without train
    responses. Case and punctuation are ignored.

    Raises:
        BadData: train responses or persona ids are missing.
    """
    persona_ids, train = answers.require_train("copy_rate")
    text_by_persona = _text_by_persona(train)

    def of_answer(text: str, persona_id: str) -> float:
        grams = list(n_grams(words(text), _N))
        return sum(_delimited(gram) in text_by_persona.get(persona_id, "") for gram in grams) / len(grams) if grams else 0.0

    return np.array([of_answer(text, persona_id) for text, persona_id in zip(answers.texts, persona_ids, strict=True)], dtype=np.float64)


def _delimited(gram: tuple[str, ...] | list[str]) -> str:
    """Return the words between spaces, so that a search matches whole words."""
    return f" {' '.join(gram)} "


@lru_cache(maxsize=1)
def _text_by_persona(train: TrainResponses) -> Mapping[str, str]:
    """Return each persona's responses as one text, separated so that no n-gram spans two responses."""
    return {
        persona_id: "\n".join(_delimited(words(response)) for response in responses) for persona_id, responses in train.by_persona.items()
    }


COPY_RATE = Metric(name="copy_rate", label="copied from train", higher_is_better=False, percent=True, score=copy_rate, can_decide=False)
