"""Cosine similarity of the sentence embeddings of answer and reference."""

import numpy as np
from jaxtyping import Float

from clusterlora.evaluation.metric import Metric, Scorable


def embedding_similarity(answers: Scorable) -> Float[np.ndarray, " item"]:
    """Return the cosine per item, in -1..1; an empty answer scores 0."""
    if not answers.texts:
        return np.zeros(0)
    both = answers.embedder.encode([*answers.texts, *answers.references]).astype(np.float64)
    text_embeddings, reference_embeddings = np.split(both, [len(answers.texts)])
    cosine = np.sum(text_embeddings * reference_embeddings, axis=1)
    non_empty = np.array([bool(text.strip()) for text in answers.texts])
    return np.where(non_empty, np.clip(cosine, -1.0, 1.0), 0.0)


EMBEDDING_SIMILARITY = Metric(
    name="embedding_similarity", label="embedding similarity", higher_is_better=True, percent=True, embeds=True, score=embedding_similarity
)
