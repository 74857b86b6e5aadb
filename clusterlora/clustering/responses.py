"""A persona is what it is answered with in its train dialogues."""

import numpy as np

from clusterlora.clustering.features import Evidence, Sources
from clusterlora.errors import BadData
from clusterlora.values import Persona


def responses(personas: tuple[Persona, ...], sources: Sources) -> Evidence:
    """Return the embedding of every train response of each persona, each embedded on its own.

    Raises:
        BadData: a persona has no train response.
    """
    texts = [
        [turn.text for dialogue in persona.of_split("train") for turn in dialogue.turns if turn.role == "assistant"] for persona in personas
    ]
    for persona, spoken in zip(personas, texts, strict=True):
        if not spoken:
            raise BadData(f"persona {persona.id!r} has no response in its train dialogues; give it one or leave the persona out")
    embeddings = sources.embedder.encode([text for spoken in texts for text in spoken]).astype(np.float64)
    return tuple(np.split(embeddings, np.cumsum([len(spoken) for spoken in texts])[:-1]))
