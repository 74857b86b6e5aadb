"""Features `prompts+responses`: the embeddings of the persona's exchanges."""

import numpy as np

from clusterlora.clustering.features import Evidence, Sources
from clusterlora.data.retrieval import exchanges
from clusterlora.errors import BadData
from clusterlora.values import Persona


def prompts_and_responses(personas: tuple[Persona, ...], sources: Sources) -> Evidence:
    """Return the embedding of every train exchange of each persona, question and answer as one text.

    Raises:
        BadData: a persona has no train exchange.
    """
    texts = [[f"{e.question}\n{e.answer}" for e in exchanges(persona)] for persona in personas]
    for persona, own_texts in zip(personas, texts, strict=True):
        if not own_texts:
            raise BadData(f"persona {persona.id!r} has no exchange in its train dialogues; add one or remove the persona")
    embeddings = sources.embedder.encode([text for own_texts in texts for text in own_texts]).astype(np.float64)
    return tuple(np.split(embeddings, np.cumsum([len(own_texts) for own_texts in texts])[:-1]))
