"""From pieces of evidence about each persona to one centred vector per persona."""

import numpy as np
from jaxtyping import Float

Evidence = tuple[Float[np.ndarray, "_ dim"], ...]
"""Per persona, one embedding for each piece of evidence (a response, a description)."""


def feature_matrix(evidence: Evidence) -> Float[np.ndarray, "persona dim"]:
    """Return each persona's mean embedding minus the mean of all personas.

    Embeddings of one kind of text share a large common direction; without it, distances and the map show what sets people apart.
    """
    means = np.stack([pieces.mean(axis=0) for pieces in evidence])
    return means - means.mean(axis=0)


def resampled(evidence: Evidence, rng: np.random.Generator) -> Evidence:
    """Return a bootstrap of the evidence: as many pieces of each persona, drawn with replacement."""
    return tuple(pieces[rng.integers(len(pieces), size=len(pieces))] for pieces in evidence)
