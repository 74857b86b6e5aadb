"""A persona is what it asks and what it is answered."""

import numpy as np

from clusterlora.clustering.features import Evidence, Sources
from clusterlora.data.shots import exchanges
from clusterlora.errors import BadData
from clusterlora.values import Persona


def prompts_and_responses(personas: tuple[Persona, ...], sources: Sources) -> Evidence:
    """Return the embedding of every train exchange of each persona, question and answer as one text.

    Raises:
        BadData: a persona has no train exchange.
    """
    texts = [[f"{e.question}\n{e.answer}" for e in exchanges(persona)] for persona in personas]
    for persona, spoken in zip(personas, texts, strict=True):
        if not spoken:
            raise BadData(f"persona {persona.id!r} has no answered question in its train dialogues; give it one or leave the persona out")
    embeddings = sources.embedder.encode([text for spoken in texts for text in spoken]).astype(np.float64)
    return tuple(np.split(embeddings, np.cumsum([len(spoken) for spoken in texts])[:-1]))
