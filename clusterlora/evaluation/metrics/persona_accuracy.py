"""Whether an answer can be told to be this persona's, by a classifier that has read everybody's train responses."""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.discriminant import Discriminant, discriminant
from clusterlora.evaluation.metric import Metric, Scorable
from clusterlora.evaluation.train_responses import TrainResponses
from clusterlora.ports import Embedder


class _Recogniser(NamedTuple):
    discriminant: Discriminant
    number_by_persona: Mapping[str, int]


def persona_accuracy(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return 1 for every answer that the classifier gives to the persona it was meant for, else 0.

    The classifier chooses among all personas with train responses; chance is one in their number. An answer without words is nobody's,
    and one to a persona without train responses cannot be recognised: both score 0.

    Raises:
        BadData: the train responses or the personas were not given.
    """
    persona_ids, train = answers.held_against_train("persona_accuracy")
    if not answers.texts or not any(train.by_persona.values()):
        return np.zeros(len(answers.texts))
    fitted = _recogniser(train, answers.embedder)
    predicted = fitted.discriminant.scores(answers.embedder.encode(answers.texts)).argmax(axis=1)
    meant = np.array([fitted.number_by_persona.get(persona_id, -1) for persona_id in persona_ids])
    spoken = np.array([bool(text.strip()) for text in answers.texts])
    return (spoken & (predicted == meant)).astype(np.float64)


@lru_cache(maxsize=1)
def _recogniser(train: TrainResponses, embedder: Embedder) -> _Recogniser:
    spoken = {persona_id: responses for persona_id, responses in train.by_persona.items() if responses}
    embeddings = embedder.encode([text for responses in spoken.values() for text in responses])
    pieces = np.split(embeddings, np.cumsum([len(responses) for responses in spoken.values()])[:-1])
    return _Recogniser(discriminant(pieces), {persona_id: number for number, persona_id in enumerate(spoken)})


PERSONA_ACCURACY = Metric(name="persona_accuracy", label="persona accuracy", higher_is_better=True, percent=True, score=persona_accuracy)
