"""Outer products that are never all there give what stored arrays of them give."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from clusterlora.clustering.exchange_topics import ExchangeTopics
from clusterlora.clustering.features import feature_matrix, resampled
from clusterlora.clustering.pieces import CrossedPieces, StoredPieces
from clusterlora.clustering.prediction import PENALTIES, predicted
from clusterlora.clustering.whitening import whitened

COUNTS = np.random.default_rng(1).integers(1, 9, 700)
"""More than a block of pieces, and more personas than a block of moments."""


def crossed(seed: int = 0) -> CrossedPieces:
    """Return pieces of people who differ in what they say to what."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(COUNTS.sum(), 5)), rng.normal(size=(COUNTS.sum(), 6))
    right += np.repeat(rng.normal(size=(len(COUNTS), 6)) * np.arange(6), COUNTS, axis=0)
    return CrossedPieces(left, right, COUNTS)


def stored(pieces: CrossedPieces) -> tuple[np.ndarray, ...]:
    return tuple(pieces[i] for i in range(len(pieces)))


def test_products_have_the_means_coordinates_and_moments_of_their_arrays() -> None:
    pieces, rng = crossed(), np.random.default_rng(2)
    directions, arrays = rng.normal(size=(30, 3)), StoredPieces(stored(pieces))
    np.testing.assert_allclose(pieces.means(), arrays.means(), atol=1e-12)
    np.testing.assert_allclose(pieces.coordinates(directions), arrays.coordinates(directions), atol=1e-12)
    np.testing.assert_allclose(pieces.second_moments()[0], arrays.second_moments()[0], atol=1e-9)
    assert pieces.second_moments()[1] == pytest.approx(arrays.second_moments()[1])
    assert list(arrays.counts) == list(pieces.counts) == list(COUNTS)


def test_whitened_products_are_those_of_sklearns_shrunk_covariance() -> None:
    arrays = stored(crossed())
    covariance, _ = ledoit_wolf(np.concatenate([own - own.mean(axis=0) for own in arrays]), assume_centered=True)
    variances, axes = np.linalg.eigh(covariance)
    expected = np.concatenate(arrays) @ (axes / np.sqrt(np.maximum(variances, 1e-4 * variances.max())))
    for evidence in (crossed(), arrays):
        # An eigenvector's sign is arbitrary.
        np.testing.assert_allclose(np.abs(np.concatenate(list(whitened(evidence)))), np.abs(expected), atol=1e-8)


@pytest.mark.parametrize("alike", [np.zeros((3, 4)), np.full((3, 4), 0.1)])
def test_evidence_that_does_not_vary_within_personas_is_left_as_it_is(alike: np.ndarray) -> None:
    evidence = (alike, alike + 1)
    assert whitened(evidence) is evidence


def test_features_and_bootstrap_samples_are_those_of_arrays() -> None:
    white = whitened(crossed())
    assert isinstance(white, CrossedPieces)
    arrays = stored(white)
    _same_up_to_signs(feature_matrix(white), feature_matrix(arrays))
    samples = [resampled(evidence, np.random.default_rng(3)) for evidence in (white, arrays)]
    for drawn, own in zip(*samples, strict=True):
        np.testing.assert_allclose(drawn, own, atol=1e-12)
    _same_up_to_signs(*map(feature_matrix, samples))


def _same_up_to_signs(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one * np.sign(np.sum(one * other, axis=0)), other, atol=1e-8)


def test_many_people_in_many_dimensions_have_the_directions_of_a_singular_value_decomposition() -> None:
    rng = np.random.default_rng(4)
    points = rng.normal(size=(900, 20)) * np.arange(20, 0, -1) @ np.linalg.qr(rng.normal(size=(600, 20)))[0].T
    found = feature_matrix(tuple(points[:, None]))
    few = feature_matrix(tuple((points @ np.linalg.svd(points, full_matrices=False)[2][:20].T)[:, None]))
    _same_up_to_signs(found, few)


def test_what_a_cluster_predicts_is_a_ridge_regression_on_its_other_members() -> None:
    pieces, rng = crossed(), np.random.default_rng(5)
    topics = ExchangeTopics(
        persona=np.repeat(np.arange(len(COUNTS)), COUNTS),
        dialogue=np.zeros(COUNTS.sum(), dtype=np.int64),
        factors=np.column_stack([np.ones(COUNTS.sum()), pieces.left]),
        residuals=pieces.right,
    )
    held_out, labels = rng.random(COUNTS.sum()) < 0.4, rng.integers(3, size=len(COUNTS))
    shares = predicted(topics, [(held_out, labels)])
    by_penalty = [_shares(topics, held_out, labels, penalty, n) for n in (6, 1) for penalty in PENALTIES]
    np.testing.assert_allclose(shares, max(by_penalty, key=lambda own: float(own.mean())), atol=1e-9)


def _shares(topics: ExchangeTopics, held_out: np.ndarray, labels: np.ndarray, penalty: float, n: int) -> np.ndarray:
    shares = []
    for persona in range(len(labels)):
        own = topics.persona == persona
        others = (labels[topics.persona] == labels[persona]) & ~own & ~held_out
        x, y = topics.factors[others][:, :n], topics.residuals[others]
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(n), x.T @ y)
        truth = topics.residuals[own & held_out]
        left = truth - topics.factors[own & held_out][:, :n] @ weights
        shares.append(1 - np.sum(left**2) / np.sum(truth**2) if len(truth) else 0.0)
    return np.array(shares)
