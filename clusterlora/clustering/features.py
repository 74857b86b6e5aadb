"""Feature vectors of personas, from pieces of evidence about each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from clusterlora.clustering.pieces import pieces_of
from clusterlora.errors import BadSettings
from clusterlora.ports.embedder import Embedder
from clusterlora.values import Persona

Evidence = Sequence[Float[np.ndarray, "_ dim"]]
"""Per persona, one vector for each piece of evidence (a response, a description), in the order of its dialogues: a tuple of arrays, or
`CrossedPieces`, which makes them when they are needed."""

_DIRECTIONS, _FEW_DIMENSIONS = 8, 512
_SMALLEST_SQUARE = 1e-10
_LONGEST = 1.5
"""Length to which extreme vectors are shortened, in medians of the lengths of all personas."""


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


def feature_matrix(evidence: Evidence) -> Float[np.ndarray, "persona direction"]:
    """Return the coordinates of each persona in the directions in which personas differ most, at most 8.

    A few people who are unlike everybody else would otherwise determine the directions and be clusters of their own, so

    - the directions are the leading principal ones of persona means that count by their evidence, sqrt(n) (x - mean), and are no longer
      than 1.5 times the median;
    - in each direction a persona keeps t^2 / (t^2 + s^2 / n) of its deviation, where s^2 is the variance between the n pieces of a
      persona and t^2 that between personas: what rests on little evidence is drawn to the centre;
    - points farther than 1.5 times the median distance from the centre are moved to that distance.

    Source: principal components of shortened vectors, Locantore et al. 1999; shrinkage, Efron & Morris 1973.
    """
    pieces = pieces_of(evidence)
    n, deviations = pieces.counts.astype(np.float64)[:, None], pieces.means()
    # In place: with many people these are the largest arrays that there are.
    deviations -= deviations.mean(axis=0)
    weighted = _shortened(deviations * np.sqrt(n))
    weighted -= weighted.mean(axis=0)
    directions = _leading_directions(weighted)
    del weighted
    points = deviations @ directions
    noise = _variance_within(evidence, directions) / n
    between = np.maximum(_shortened(points.copy()).var(axis=0) - noise.mean(axis=0), 0.05 * points.var(axis=0))
    shrunk = points * np.divide(between, between + noise, out=np.ones_like(points), where=between + noise > 0)
    return _shortened(shrunk - shrunk.mean(axis=0))


def resampled(evidence: Evidence, rng: np.random.Generator) -> Evidence:
    """Return a bootstrap sample of the evidence: each persona's pieces, drawn with replacement."""
    pieces = pieces_of(evidence)
    return pieces.taking([rng.integers(n, size=n) for n in pieces.counts])


def _leading_directions(vectors: Float[np.ndarray, "persona dim"]) -> Float[np.ndarray, "dim direction"]:
    """Return the right singular vectors with the largest singular values, at most 8.

    With more dimensions than personas they are computed from the inner products of personas, which is a fraction of the work; with many
    dimensions of more personas, from those of the dimensions.
    """
    from scipy.linalg import eigh

    if vectors.shape[1] <= len(vectors):
        if vectors.shape[1] <= _FEW_DIMENSIONS:
            return np.linalg.svd(vectors, full_matrices=False)[2][:_DIRECTIONS].T
        dim = vectors.shape[1]
        return eigh(vectors.T @ vectors, subset_by_index=(dim - _DIRECTIONS, dim - 1))[1][:, ::-1]  # pyrefly: ignore[bad-index]
    squares, left = np.linalg.eigh(vectors @ vectors.T)
    kept = np.flatnonzero(squares > _SMALLEST_SQUARE * squares[-1])[::-1][:_DIRECTIONS]
    if not len(kept) or squares[-1] <= 0:
        return np.eye(vectors.shape[1], 1)
    return vectors.T @ (left[:, kept] / np.sqrt(squares[kept]))


def _shortened(vectors: Float[np.ndarray, "persona dim"]) -> Float[np.ndarray, "persona dim"]:
    """Return the vectors, of which those that are too long were shortened in place."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    longest = _LONGEST * np.median(lengths)
    np.multiply(vectors, np.divide(longest, lengths, out=np.ones_like(lengths), where=lengths > longest), out=vectors)
    return vectors


def _variance_within(evidence: Evidence, directions: Float[np.ndarray, "dim direction"]) -> Float[np.ndarray, " direction"]:
    """Return the variance between pieces of the same persona in each direction; 0 where everybody has one piece."""
    pieces = pieces_of(evidence)
    freedom = int(pieces.counts.sum()) - len(pieces)
    if not freedom:
        return np.zeros(directions.shape[1])
    projected = pieces.coordinates(directions)
    starts = np.cumsum(pieces.counts) - pieces.counts
    means = np.add.reduceat(projected, starts, axis=0) / pieces.counts[:, None]
    return np.sum((projected - np.repeat(means, pieces.counts, axis=0)) ** 2, axis=0) / freedom
