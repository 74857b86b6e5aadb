"""What a partition of the personas predicts of answers that were held out: the share that the other members of a cluster explain."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from clusterlora.clustering.exchange_topics import ExchangeTopics

_BLOCK = 256
"""Personas whose moments are there at a time: with 25 factors and 64 topics they take 10 MB."""
PENALTIES = tuple(10.0**power for power in (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6))


@dataclass(frozen=True, slots=True)
class Moments:
    """Second moments of prompt factors, the first of which is 1, and residuals, per persona: of the exchanges that are fitted, and of
    those held out."""

    fit_factors: Float[np.ndarray, "persona factor factor"]
    fit_products: Float[np.ndarray, "persona factor topic"]
    held_out_factors: Float[np.ndarray, "persona factor factor"]
    held_out_products: Float[np.ndarray, "persona factor topic"]
    held_out_squares: Float[np.ndarray, " persona"]


def _moments(topics: ExchangeTopics, held_out: Bool[np.ndarray, " exchange"], personas: range) -> Moments:
    """Return the moments of these personas' exchanges that are held out, and of their others."""
    ends = np.searchsorted(topics.persona, [*personas, personas.stop])
    rows = [slice(start, end) for start, end in pairwise(ends.tolist())]

    def products(ours: np.ndarray, theirs: np.ndarray, *, of_held_out: bool) -> np.ndarray:
        return np.stack([(ours[own][held_out[own] == of_held_out]).T @ theirs[own][held_out[own] == of_held_out] for own in rows])

    return Moments(
        fit_factors=products(topics.factors, topics.factors, of_held_out=False),
        fit_products=products(topics.factors, topics.residuals, of_held_out=False),
        held_out_factors=products(topics.factors, topics.factors, of_held_out=True),
        held_out_products=products(topics.factors, topics.residuals, of_held_out=True),
        held_out_squares=np.array([np.sum(topics.residuals[own][held_out[own]] ** 2) for own in rows]),
    )


def predicted(
    topics: ExchangeTopics, folds: Iterable[tuple[Bool[np.ndarray, " exchange"], Int[np.ndarray, " persona"]]]
) -> Float[np.ndarray, " persona"]:
    """Return which share of the squared residuals of a persona's held-out answers is predicted by the other members of its cluster.

    A ridge regression of residuals on prompt factors, fitted on the other members' exchanges, stands for the cluster's adapter; or on the
    constant among them alone, which is a manner that does not depend on the prompt: on prompts unlike those that were fitted, the other
    factors mislead. The persona's own exchanges take no part in it, or every small group would seem to predict its members. Factors and
    penalty are those that predict most; a large penalty predicts nothing, which is what one cluster for all does: its answers are in the
    residuals already. Shares of personas count alike, however much they said or how extreme they are; negative ones mean that a cluster
    misleads.

    Args:
        folds: for each fold, which exchanges are held out, and the partition of the evidence that is not.
    """
    reductions, squares = [], []
    for held_out, labels in folds:
        blocks = [range(start, min(start + _BLOCK, len(labels))) for start in range(0, len(labels), _BLOCK)]
        factors, products = _totals(topics, held_out, labels)
        by_block = []
        for block in blocks:
            own = _moments(topics, held_out, block)
            of_cluster = labels[block.start : block.stop]
            by_block.append(_explained(own, factors[of_cluster] - own.fit_factors, products[of_cluster] - own.fit_products))
            squares.append(own.held_out_squares)
        reductions.append(np.concatenate(by_block))
    total = np.sum(np.concatenate(squares).reshape(len(reductions), -1), axis=0)
    explained = np.sum(reductions, axis=0)
    shares = np.divide(explained, total[:, None], out=np.zeros_like(explained), where=total[:, None] > 0)
    return shares[:, shares.mean(axis=0).argmax()]


def _totals(
    topics: ExchangeTopics, held_out: Bool[np.ndarray, " exchange"], labels: Int[np.ndarray, " persona"]
) -> tuple[Float[np.ndarray, "cluster factor factor"], Float[np.ndarray, "cluster factor topic"]]:
    """Return the moments of the exchanges of each cluster that are fitted."""
    cluster = np.where(held_out, -1, labels[topics.persona])
    members = [cluster == label for label in range(labels.max() + 1)]
    factors = [topics.factors[own] for own in members]
    return (
        np.stack([own.T @ own for own in factors]),
        np.stack([own.T @ topics.residuals[rows] for own, rows in zip(factors, members, strict=True)]),
    )


def _explained(
    of_persona: Moments, factors: Float[np.ndarray, "persona factor factor"], products: Float[np.ndarray, "persona factor topic"]
) -> Float[np.ndarray, "persona penalty"]:
    """Return by how much each penalty reduces the squared residuals of personas' held-out answers: first with all factors, then with one.

    Args:
        factors, products: the moments of the other members of each one's cluster.
    """
    variances, axes = np.linalg.eigh(factors)
    rotated = np.einsum("pfe,pft->pet", axes, products)
    held_factors = np.einsum("pfe,pfg,pgh->peh", axes, of_persona.held_out_factors, axes, optimize=True)
    held_products = np.einsum("pfe,pft->pet", axes, of_persona.held_out_products)
    by_penalty = []
    for penalty in PENALTIES:
        weights = rotated / (np.maximum(variances, 0) + penalty)[:, :, None]
        explained = 2 * np.sum(weights * held_products, axis=(1, 2))
        by_penalty.append(explained - np.sum(weights * np.matmul(held_factors, weights), axis=(1, 2)))
    sums, n_others = products[:, 0], factors[:, 0, 0, None]
    for penalty in PENALTIES:
        manner = sums / (n_others + penalty)
        explained = 2 * np.sum(manner * of_persona.held_out_products[:, 0], axis=1)
        by_penalty.append(explained - of_persona.held_out_factors[:, 0, 0] * np.sum(manner**2, axis=1))
    return np.stack(by_penalty, axis=1)
