"""Reference points on the scale of a similarity: scores without any personalisation."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from clusterlora.errors import BadData
from clusterlora.ports.embedder import Embedder

FLOOR_REFERENCES = 3
"""References per persona that the floor is measured on; every pair of people counts, so a few are enough."""
SAME_PROMPT_ITEMS = 10
"""Items per persona that the same-prompt floor is measured on and that similar prompts are searched among."""


def floor(references_by_persona: Mapping[str, Sequence[str]], embedder: Embedder) -> float:
    """Return the mean similarity between references of different personas, in -1..1.

    It is the score of another persona's answer to another request. Personas have equal weight, and all pairs count: the mean of
    mean_p . mean_q over personas p != q is (|sum of means|^2 - sum of |mean|^2) / (P (P - 1)), so nothing is sampled.

    Raises:
        BadData: fewer than two personas, or a persona without references.
    """
    n_personas = len(references_by_persona)
    if n_personas < 2:
        raise BadData(f"the floor compares different personas and got {n_personas}; give at least 2")
    if without := [persona_id for persona_id, references in references_by_persona.items() if not references]:
        raise BadData(f"persona {without[0]!r} has no references; leave it out of the floor")
    means = np.stack([embedder.encode(references).astype(np.float64).mean(axis=0) for references in references_by_persona.values()])
    total = means.sum(axis=0)
    return float((total @ total - np.sum(means * means)) / (n_personas * (n_personas - 1)))


def most_similar_of_others(prompts_by_persona: Mapping[str, Sequence[str]], embedder: Embedder) -> Int[np.ndarray, " prompt"]:
    """Return the index of each prompt's most similar prompt of another persona; of equals the first.

    Prompts are numbered persona by persona. The score of that prompt's reference tells how much the prompt alone determines.

    Raises:
        BadData: fewer than two personas, or a persona without prompts.
    """
    if len(prompts_by_persona) < 2:
        raise BadData(f"the same-prompt floor compares different personas and got {len(prompts_by_persona)}; give at least 2")
    if without := [persona_id for persona_id, prompts in prompts_by_persona.items() if not prompts]:
        raise BadData(f"persona {without[0]!r} has no prompts; leave it out of the same-prompt floor")
    embeddings = embedder.encode([prompt for prompts in prompts_by_persona.values() for prompt in prompts])
    ends = np.cumsum([len(prompts) for prompts in prompts_by_persona.values()])
    nearest = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        cosines = embeddings[start:end] @ embeddings.T
        cosines[:, start:end] = -np.inf
        nearest.append(cosines.argmax(axis=1))
    return np.concatenate(nearest)
