"""What a partition of the personas predicts of answers that were held out: the share that the other members of a cluster explain."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from clusterlora.clustering.exchange_topics import ExchangeTopics

_PENALTIES = tuple(10.0**power for power in (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6))


@dataclass(frozen=True, slots=True)
class Moments:
    """Second moments of prompt factors, the first of which is 1, and residuals, per persona: of the exchanges that are fitted, and of
    those held out."""

    fit_factors: Float[np.ndarray, "persona factor factor"]
    fit_products: Float[np.ndarray, "persona factor topic"]
    held_out_factors: Float[np.ndarray, "persona factor factor"]
    held_out_products: Float[np.ndarray, "persona factor topic"]
    held_out_squares: Float[np.ndarray, " persona"]


def moments(topics: ExchangeTopics, held_out: Bool[np.ndarray, " exchange"]) -> Moments:
    """Return the moments of the exchanges held out and of the others."""
    factors, residuals = topics.by_persona(topics.factors), topics.by_persona(topics.residuals)
    masks = topics.by_persona(held_out)

    def products(ours: Iterable[np.ndarray], theirs: Iterable[np.ndarray], *, of_held_out: bool) -> np.ndarray:
        return np.stack([x[mask == of_held_out].T @ y[mask == of_held_out] for x, y, mask in zip(ours, theirs, masks, strict=True)])

    return Moments(
        fit_factors=products(factors, factors, of_held_out=False),
        fit_products=products(factors, residuals, of_held_out=False),
        held_out_factors=products(factors, factors, of_held_out=True),
        held_out_products=products(factors, residuals, of_held_out=True),
        held_out_squares=np.array([np.sum(y[mask] ** 2) for y, mask in zip(residuals, masks, strict=True)]),
    )


def predicted(
    folds: Iterable[tuple[Moments, Int[np.ndarray, " persona"]]],
) -> Float[np.ndarray, " persona"]:
    """Return which share of the squared residuals of a persona's held-out answers is predicted by the other members of its cluster.

    A ridge regression of residuals on prompt factors, fitted on the other members' exchanges, stands for the cluster's adapter; or on the
    constant among them alone, which is a manner that does not depend on the prompt: on prompts unlike those that were fitted, the other
    factors mislead. The persona's own exchanges take no part in it, or every small group would seem to predict its members. Factors and
    penalty are those that predict most; a large penalty predicts nothing, which is what one cluster for all does: its answers are in the
    residuals already. Shares of personas count alike, however much they said or how extreme they are; negative ones mean that a cluster
    misleads.

    Args:
        folds: for each fold, the moments, and the partition of the evidence that was not held out.
    """
    reductions, squares = [], []
    for fold, labels in folds:
        totals = np.stack([fold.fit_factors[labels == label].sum(axis=0) for label in range(labels.max() + 1)])
        others = totals[labels] - fold.fit_factors
        products = np.stack([fold.fit_products[labels == label].sum(axis=0) for label in range(labels.max() + 1)])[labels]
        variances, axes = np.linalg.eigh(others)
        rotated = np.einsum("pfe,pft->pet", axes, products - fold.fit_products)
        held_factors = np.einsum("pfe,pfg,pgh->peh", axes, fold.held_out_factors, axes, optimize=True)
        held_products = np.einsum("pfe,pft->pet", axes, fold.held_out_products)
        by_penalty = []
        for penalty in _PENALTIES:
            weights = rotated / (np.maximum(variances, 0) + penalty)[:, :, None]
            explained = 2 * np.sum(weights * held_products, axis=(1, 2))
            by_penalty.append(explained - np.sum(weights * np.matmul(held_factors, weights), axis=(1, 2)))
        sums, n_others = (products - fold.fit_products)[:, 0], others[:, 0, 0, None]
        for penalty in _PENALTIES:
            manner = sums / (n_others + penalty)
            explained = 2 * np.sum(manner * fold.held_out_products[:, 0], axis=1)
            by_penalty.append(explained - fold.held_out_factors[:, 0, 0] * np.sum(manner**2, axis=1))
        reductions.append(np.stack(by_penalty, axis=1))
        squares.append(fold.held_out_squares)
    total = np.sum(squares, axis=0)
    explained = np.sum(reductions, axis=0)
    shares = np.divide(explained, total[:, None], out=np.zeros_like(explained), where=total[:, None] > 0)
    return shares[:, shares.mean(axis=0).argmax()]
