"""Sentence embeddings, for clustering, the persona signal and the metrics."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


@runtime_checkable
class Embedder(Protocol):
    """A sentence embedding model."""

    name: str
    revision: str

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "text dim"]:
        """Return unit-length embeddings, one row per text."""
        ...
