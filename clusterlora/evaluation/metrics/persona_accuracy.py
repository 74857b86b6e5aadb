"""Whether a classifier of the personas' train responses recognises the persona from the answer."""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.discriminant import Discriminant, discriminant
from clusterlora.evaluation.metric import Metric, Scorable
from clusterlora.evaluation.train_responses import TrainResponses
from clusterlora.ports.embedder import Embedder


class _PersonaClassifier(NamedTuple):
    discriminant: Discriminant
    number_by_persona: Mapping[str, int]


def persona_accuracy(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return 1 for every answer that the classifier assigns to its persona, else 0.

    The classifier chooses among all personas with train responses, so chance is one in their number. Empty answers and answers for
    personas without train responses score 0.

    Raises:
        BadData: train responses or persona ids are missing.
    """
    persona_ids, train = answers.require_train("persona_accuracy")
    if not answers.texts or not any(train.by_persona.values()):
        return np.zeros(len(answers.texts))
    classifier = _fit(train, answers.embedder)
    predicted = classifier.discriminant.scores(answers.embedder.encode(answers.texts)).argmax(axis=1)
    expected = np.array([classifier.number_by_persona.get(persona_id, -1) for persona_id in persona_ids])
    non_empty = np.array([bool(text.strip()) for text in answers.texts])
    return (non_empty & (predicted == expected)).astype(np.float64)


@lru_cache(maxsize=1)
def _fit(train: TrainResponses, embedder: Embedder) -> _PersonaClassifier:
    by_persona = {persona_id: responses for persona_id, responses in train.by_persona.items() if responses}
    embeddings = embedder.encode([text for responses in by_persona.values() for text in responses])
    classes = np.split(embeddings, np.cumsum([len(responses) for responses in by_persona.values()])[:-1])
    return _PersonaClassifier(discriminant(classes), {persona_id: number for number, persona_id in enumerate(by_persona)})


PERSONA_ACCURACY = Metric(
    name="persona_accuracy", label="persona accuracy", higher_is_better=True, percent=True, embeds_train=True, score=persona_accuracy
)
