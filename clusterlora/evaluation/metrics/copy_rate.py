"""How much of an answer is learnt by heart: verbatim from the persona's own train responses."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric, Scorable
from clusterlora.evaluation.train_responses import TrainResponses
from clusterlora.evaluation.words import n_grams, words

_RUN = 8


def copy_rate(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return the share of the answer's runs of eight words that stand in a train response of its persona, in 0..1.

    An answer of fewer than eight words scores 0: that short, people who ask for the same are told the same. So does a persona without
    train responses. Case and punctuation are ignored.

    Raises:
        BadData: the train responses or the personas were not given.
    """
    persona_ids, train = answers.held_against_train("copy_rate")
    learnt = _learnt_by_persona(train)

    def of_answer(text: str, persona_id: str) -> float:
        runs = list(n_grams(words(text), _RUN))
        return sum(_as_searched(run) in learnt.get(persona_id, "") for run in runs) / len(runs) if runs else 0.0

    return np.array([of_answer(text, persona_id) for text, persona_id in zip(answers.texts, persona_ids, strict=True)], dtype=np.float64)


def _as_searched(run: tuple[str, ...] | list[str]) -> str:
    """Return the words between spaces: no run is found inside longer words."""
    return f" {' '.join(run)} "


@lru_cache(maxsize=1)
def _learnt_by_persona(train: TrainResponses) -> Mapping[str, str]:
    """Return each persona's responses as one text in which no run of words crosses from one response to the next."""
    return {
        persona_id: "\n".join(_as_searched(words(response)) for response in responses) for persona_id, responses in train.by_persona.items()
    }


COPY_RATE = Metric(name="copy_rate", label="copied from train", higher_is_better=False, percent=True, score=copy_rate)
