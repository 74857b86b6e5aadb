"""Pieces of evidence about personas: as arrays, or as outer products that are made when they are needed, mapped linearly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

_BLOCK = 2048
"""Outer products made at a time: those of 25 factors with 64 topics take 26 MB."""


@dataclass(frozen=True)
class CrossedPieces(Sequence[np.ndarray]):
    """Per persona one vector for each piece of evidence: the outer product of two vectors, times a matrix if there is one.

    The products have as many dimensions as their vectors' dimensions multiplied. Sums over a persona's pieces, and their coordinates in
    a few directions, are computed from the vectors, so that no array of all products is ever there.
    """

    left: Float[np.ndarray, "piece left"]
    right: Float[np.ndarray, "piece right"]
    counts: Int[np.ndarray, " persona"]
    """Pieces of each persona, in order."""
    matrix: Float[np.ndarray, "product dim"] | None = None

    @cached_property
    def _ends(self) -> Int[np.ndarray, " end"]:
        return np.concatenate([[0], np.cumsum(self.counts)])

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, persona: int) -> Float[np.ndarray, "piece dim"]:  # pyrefly: ignore[bad-override] (no slices)
        """Return a persona's pieces."""
        start, end = self._ends[range(len(self))[persona]], self._ends[range(len(self))[persona] + 1]
        products = self._products(slice(start, end))
        return products if self.matrix is None else products @ self.matrix

    def means(self) -> Float[np.ndarray, "persona dim"]:
        """Return the mean of each persona's pieces."""
        of_persona = zip(self._ends[:-1], self._ends[1:], strict=True)
        means = np.stack([(self.left[start:end].T @ self.right[start:end]).ravel() for start, end in of_persona])
        means /= self.counts[:, None]
        return means if self.matrix is None else means @ self.matrix

    def coordinates(self, directions: Float[np.ndarray, "dim direction"]) -> Float[np.ndarray, "piece direction"]:
        """Return the coordinates of all pieces in some directions."""
        matrix = directions if self.matrix is None else self.matrix @ directions
        return np.concatenate([products @ matrix for _, products in self._blocks()])

    def second_moments(self) -> tuple[Float[np.ndarray, "product product"], float]:
        """Return the sum of the outer squares of all deviations from a persona's mean, and that of the fourth powers of their lengths.

        Of products that are not mapped.
        """
        means = self.means()
        owner = np.repeat(np.arange(len(self)), self.counts)
        total, fourth = np.zeros((means.shape[1], means.shape[1])), 0.0
        for rows, products in self._blocks():
            products -= means[owner[rows]]
            total += products.T @ products
            fourth += float(np.sum(np.sum(products**2, axis=1) ** 2))
        return total, fourth

    def taking(self, chosen: Sequence[Int[np.ndarray, " _piece"]]) -> "CrossedPieces":
        """Return these pieces of each persona, by their numbers."""
        rows = np.concatenate([start + own for start, own in zip(self._ends[:-1], chosen, strict=True)])
        return replace(self, left=self.left[rows], right=self.right[rows], counts=np.array([len(own) for own in chosen]))

    def _blocks(self) -> Iterator[tuple[slice, Float[np.ndarray, "piece product"]]]:
        for start in range(0, len(self.left), _BLOCK):
            rows = slice(start, start + _BLOCK)
            yield rows, self._products(rows)

    def _products(self, rows: slice) -> Float[np.ndarray, "piece product"]:
        left, right = self.left[rows], self.right[rows]
        return (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)


@dataclass(frozen=True)
class StoredPieces(Sequence[np.ndarray]):
    """Per persona one vector for each piece of evidence, as they are."""

    arrays: tuple[Float[np.ndarray, "_piece dim"], ...]

    @cached_property
    def counts(self) -> Int[np.ndarray, " persona"]:
        """Pieces of each persona."""
        return np.array([len(pieces) for pieces in self.arrays])

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, persona: int) -> Float[np.ndarray, "piece dim"]:  # pyrefly: ignore[bad-override] (no slices)
        """Return a persona's pieces."""
        return self.arrays[persona]

    def means(self) -> Float[np.ndarray, "persona dim"]:
        """Return the mean of each persona's pieces."""
        return np.stack([pieces.mean(axis=0) for pieces in self.arrays])

    def coordinates(self, directions: Float[np.ndarray, "dim direction"]) -> Float[np.ndarray, "piece direction"]:
        """Return the coordinates of all pieces in some directions."""
        return np.concatenate([pieces @ directions for pieces in self.arrays])

    def second_moments(self) -> tuple[Float[np.ndarray, "dim dim"], float]:
        """Return the sum of the outer squares of all deviations from a persona's mean, and that of the fourth powers of their lengths."""
        deviations = np.concatenate([pieces - pieces.mean(axis=0) for pieces in self.arrays])
        return deviations.T @ deviations, float(np.sum(np.sum(deviations**2, axis=1) ** 2))

    def taking(self, chosen: Sequence[Int[np.ndarray, " _piece"]]) -> "StoredPieces":
        """Return these pieces of each persona, by their numbers."""
        return StoredPieces(tuple(pieces[own] for pieces, own in zip(self.arrays, chosen, strict=True)))


def pieces_of(evidence: Sequence[np.ndarray]) -> CrossedPieces | StoredPieces:
    """Return evidence as pieces; arrays are not copied."""
    return evidence if isinstance(evidence, CrossedPieces | StoredPieces) else StoredPieces(tuple(evidence))
