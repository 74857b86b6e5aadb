"""A persona is how its train dialogues would change the unified adapter."""

import numpy as np

from clusterlora.clustering.discriminants import discriminants
from clusterlora.clustering.features import Evidence, Sources
from clusterlora.values import Persona


def gradient(personas: tuple[Persona, ...], sources: Sources) -> Evidence:
    """Return the direction of each train dialogue's gradient at the unified adapter, in the directions that tell personas apart.

    Gradients of one persona's dialogues point apart as its requests do; what they share is what the unified adapter lacks for it.
    """
    gradients = sources.gradients(personas)
    return discriminants(tuple(pieces / np.maximum(np.linalg.norm(pieces, axis=1, keepdims=True), 1e-12) for pieces in gradients))
