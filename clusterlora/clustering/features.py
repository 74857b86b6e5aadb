"""From pieces of evidence about each persona to one centred vector per persona."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from clusterlora.errors import BadSettings
from clusterlora.ports import Embedder
from clusterlora.values import Persona

Evidence = tuple[Float[np.ndarray, "_ dim"], ...]
"""Per persona, one embedding for each piece of evidence (a response, a description)."""


def _untrained(_personas: Sequence[Persona]) -> Any:
    raise BadSettings("this clustering reads trained adapters and was given none; cluster by responses_given_prompts")


@dataclass(frozen=True, slots=True)
class Sources:
    """What an algorithm may look at besides the dialogues; all of it comes from train dialogues.

    `gradients` gives a sketch of the gradient of each train dialogue's loss at the unified adapter; `products` the inner products
    <dW_p, dW_q> of the personas' own adapters. Both need adapters, and only algorithms in `PREREQUISITES` ask.
    """

    embedder: Embedder
    gradients: Callable[[Sequence[Persona]], Evidence] = _untrained
    products: Callable[[Sequence[Persona]], Float[np.ndarray, "persona persona"]] = _untrained


def feature_matrix(evidence: Evidence) -> Float[np.ndarray, "persona dim"]:
    """Return each persona's mean embedding minus the mean of all personas.

    Embeddings of one kind of text share a large common direction; without it, distances and the map show what sets people apart.
    """
    means = np.stack([pieces.mean(axis=0) for pieces in evidence])
    return means - means.mean(axis=0)


def resampled(evidence: Evidence, rng: np.random.Generator) -> Evidence:
    """Return a bootstrap of the evidence: as many pieces of each persona, drawn with replacement."""
    return tuple(pieces[rng.integers(len(pieces), size=len(pieces))] for pieces in evidence)
