"""Features `description`: the embedding of the persona's description."""

import numpy as np

from clusterlora.clustering.features import Evidence, Sources
from clusterlora.errors import BadData
from clusterlora.values import Persona


def description(personas: tuple[Persona, ...], sources: Sources) -> Evidence:
    """Return the embedding of each persona's description.

    Raises:
        BadData: a persona has no description.
    """
    texts = [persona.description or "" for persona in personas]
    for persona, text in zip(personas, texts, strict=True):
        if not text.strip():
            raise BadData(f"persona {persona.id!r} has no description; add one or cluster by responses")
    return tuple(sources.embedder.encode(texts).astype(np.float64)[:, None, :])
