"""Linear discriminant analysis of embeddings, with one shrunken covariance for all classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Discriminant:
    """Linear scores of each class under equal priors: embedding @ weights + offsets."""

    weights: Float[np.ndarray, "dim class"]
    offsets: Float[np.ndarray, " class"]

    def scores(self, embeddings: Float[np.ndarray, "text dim"]) -> Float[np.ndarray, "text class"]:
        """Return each text's score per class; the highest is the predicted class."""
        return embeddings.astype(np.float64) @ self.weights + self.offsets


def discriminant(pieces: Sequence[Float[np.ndarray, "_ dim"]]) -> Discriminant:
    """Return the discriminant of classes, each given by at least one embedding.

    Distances to class means are measured in units of the variation within classes, which is mostly the variation of requests.
    Source: Fisher 1936, Rao 1948; shrinkage, Ledoit & Wolf 2004.
    """
    from sklearn.covariance import ledoit_wolf

    means = np.stack([own.mean(axis=0) for own in pieces]).astype(np.float64)
    covariance, _ = ledoit_wolf(np.concatenate([own - own.mean(axis=0) for own in pieces]).astype(np.float64), assume_centered=True)
    # If every class has one embedding the covariance is zero, and the scores reduce to distances to the means.
    weights = np.linalg.solve(covariance + _LEAST_VARIANCE * np.eye(len(covariance)), means.T)
    return Discriminant(weights, -0.5 * np.sum(means.T * weights, axis=0))
