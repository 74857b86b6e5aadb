"""Telling whose a text is by its embedding: linear discriminant analysis with one shrunken covariance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Discriminant:
    """Linear scores of every class, all equally likely beforehand: embedding @ weights + offsets."""

    weights: Float[np.ndarray, "dim class"]
    offsets: Float[np.ndarray, " class"]

    def scores(self, embeddings: Float[np.ndarray, "text dim"]) -> Float[np.ndarray, "text class"]:
        """Return what speaks for every class; the highest is whose the text is."""
        return embeddings.astype(np.float64) @ self.weights + self.offsets


def discriminant(pieces: Sequence[Float[np.ndarray, "_ dim"]]) -> Discriminant:
    """Return the discriminant of classes, each given by its embeddings (at least one).

    What varies inside a class is mostly what was asked for; distances to class means are measured in units of that.
    Source: Fisher 1936, Rao 1948; shrinkage, Ledoit & Wolf 2004.
    """
    from sklearn.covariance import ledoit_wolf

    means = np.stack([own.mean(axis=0) for own in pieces]).astype(np.float64)
    covariance, _ = ledoit_wolf(np.concatenate([own - own.mean(axis=0) for own in pieces]).astype(np.float64), assume_centered=True)
    # Classes of one embedding each have no covariance; what is left is the distance to the mean.
    weights = np.linalg.solve(covariance + _LEAST_VARIANCE * np.eye(len(covariance)), means.T)
    return Discriminant(weights, -0.5 * np.sum(means.T * weights, axis=0))
