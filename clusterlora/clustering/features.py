"""Feature vectors of personas, from pieces of evidence about each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from clusterlora.errors import BadSettings
from clusterlora.ports.embedder import Embedder
from clusterlora.values import Persona

Evidence = tuple[Float[np.ndarray, "_ dim"], ...]
"""Per persona, one embedding for each piece of evidence (a response, a description)."""


def _not_trained(_personas: Sequence[Persona]) -> Any:
    raise BadSettings("this clustering algorithm needs trained adapters, which are not available here; cluster by responses_given_prompts")


@dataclass(frozen=True, slots=True)
class Sources:
    """What an algorithm may use besides the dialogues; everything is derived from train dialogues.

    `gradients` returns a sketch of the gradient of each train dialogue's loss at the unified adapter, `products` the inner products
    <dW_p, dW_q> of the personas' own adapters. Both need trained adapters; only algorithms in `PREREQUISITES` use them.
    """

    embedder: Embedder
    gradients: Callable[[Sequence[Persona]], Evidence] = _not_trained
    products: Callable[[Sequence[Persona]], Float[np.ndarray, "persona persona"]] = _not_trained


def feature_matrix(evidence: Evidence) -> Float[np.ndarray, "persona dim"]:
    """Return each persona's mean embedding minus the mean of all personas.

    Embeddings of similar texts share a large common component; without it, distances reflect the differences between personas.
    """
    means = np.stack([pieces.mean(axis=0) for pieces in evidence])
    return means - means.mean(axis=0)


def resampled(evidence: Evidence, rng: np.random.Generator) -> Evidence:
    """Return a bootstrap sample of the evidence: each persona's pieces, drawn with replacement."""
    return tuple(pieces[rng.integers(len(pieces), size=len(pieces))] for pieces in evidence)
