"""Features `gradient`: the gradients of the persona's train dialogues at the unified adapter."""

import numpy as np

from clusterlora.clustering.features import Evidence, Sources
from clusterlora.clustering.whitening import whitened
from clusterlora.values import Persona


def gradient(personas: tuple[Persona, ...], sources: Sources) -> Evidence:
    """Return the normalised gradient of each train dialogue at the unified adapter, whitened.

    The gradients of a persona's dialogues differ as its prompts do; their common part is what the unified adapter lacks for the persona.
    """
    gradients = sources.gradients(personas)
    return whitened(tuple(pieces / np.maximum(np.linalg.norm(pieces, axis=1, keepdims=True), 1e-12) for pieces in gradients))
