"""Sets of words that are nearly equal, found without comparing every pair: an exact similarity join."""

from collections.abc import Iterable, Iterator, Sequence

NEAR = 0.9
"""Jaccard similarity of word sets from which two dialogues count as near duplicates."""

_ROUNDING = 1e-9

WordSet = tuple[int, ...]
"""The numbers of a set's words, each once."""


class WordNumbers:
    """Numbers words in the order in which they are first met."""

    def __init__(self) -> None:
        self._number_by_word: dict[str, int] = {}

    def numbers(self, words: Iterable[str]) -> WordSet:
        """Return the numbers of these words, each once and ascending."""
        number_by_word = self._number_by_word
        return tuple(sorted({number_by_word.setdefault(word, len(number_by_word)) for word in words}))


class NearSets:
    """An index of sets that finds those with a Jaccard similarity of at least NEAR to another set.

    A set of n words differs from any that is as near in at most h = floor(n (1 - NEAR) / NEAR) words, those of either that the other lacks.
    Its words are divided into h + 1 parts by their numbers; of a near set, at least one of these parts is the same (pigeonhole), and only
    sets that have one in common are compared. Where words are few and all of them frequent, a part of several words is still rare, which
    a single word, as a prefix filter looks up, is not.

    Source: Arasu, Ganti & Kaushik 2006, PartEnum; Deng, Li, Wen & Feng 2015, partitions of sets.
    """

    def __init__(self, sets: Sequence[WordSet]) -> None:
        self._sets = sets
        # By the length of the sets, then by the hash of a part: two parts with one hash are candidates for no reason, and compared as well.
        self._positions: dict[int, dict[int, list[int]]] = {}
        for position, words in enumerate(sets):
            positions_by_part = self._positions.setdefault(len(words), {})
            for part in _parts(words, _n_parts(len(words))):
                positions_by_part.setdefault(part, []).append(position)

    def near(self, words: WordSet) -> Iterator[int]:
        """Yield the positions of the sets that are near to this one, each once; one that is equal, too."""
        own = frozenset(words)
        for position in self.candidates(words):
            other = self._sets[position]
            n_common = len(own.intersection(other))
            if n_common >= NEAR * (len(own) + len(other) - n_common) - _ROUNDING:
                yield position

    def candidates(self, words: WordSet) -> frozenset[int]:
        """Return the positions of the sets that are compared with this one: all that are near, and a few more."""
        found = set[int]()
        parts: dict[int, tuple[int, ...]] = {}
        for length, positions_by_part in self._positions.items():
            if length >= NEAR * len(words) - _ROUNDING and len(words) >= NEAR * length - _ROUNDING:
                n_parts = _n_parts(length)
                if n_parts not in parts:
                    parts[n_parts] = _parts(words, n_parts)
                for part in parts[n_parts]:
                    found.update(positions_by_part.get(part, ()))
        return frozenset(found)


def _n_parts(length: int) -> int:
    """Return the number of parts in which sets of this length are compared: one more than the words in which a near set may differ."""
    return int(length * (1 - NEAR) / NEAR + _ROUNDING) + 1


def _parts(words: WordSet, n_parts: int) -> tuple[int, ...]:
    """Return the hash of each part of a set."""
    return tuple(hash((k, *(word for word in words if word % n_parts == k))) for k in range(n_parts))
