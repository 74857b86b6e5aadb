"""Features `responses`: the embeddings of the assistant's responses to the persona."""

import numpy as np

from clusterlora.clustering.features import Evidence, Sources
from clusterlora.errors import BadData
from clusterlora.values import Persona


def responses(personas: tuple[Persona, ...], sources: Sources) -> Evidence:
    """Return the embedding of every train response of each persona.

    Raises:
        BadData: a persona has no train response.
    """
    texts = [
        [turn.text for dialogue in persona.of_split("train") for turn in dialogue.turns if turn.role == "assistant"] for persona in personas
    ]
    for persona, own_texts in zip(personas, texts, strict=True):
        if not own_texts:
            raise BadData(f"persona {persona.id!r} has no response in its train dialogues; add one or remove the persona")
    embeddings = sources.embedder.encode([text for own_texts in texts for text in own_texts]).astype(np.float64)
    return tuple(np.split(embeddings, np.cumsum([len(own_texts) for own_texts in texts])[:-1]))
