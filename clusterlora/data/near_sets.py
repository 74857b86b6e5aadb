"""Sets of words that are nearly equal, found without comparing every pair: an exact similarity join."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from fractions import Fraction
from itertools import combinations

NEAR = 0.9
"""Jaccard similarity of word sets from which two dialogues count as near duplicates."""

APART, IN_COMMON = 2, 5
"""Words that each of two dialogues may have alone, and words that they have in common, for them to count as few words apart."""
PAIRS_APART, PAIRS_IN_COMMON = 6, 10
"""The same in pairs of neighbouring characters, where no spaces separate words: a name of two characters changes three pairs. As with
words, two and a half times as many must be in common as each may have alone."""
_SHARED = 2
"""Rare words that are looked up together."""

_ROUNDING = 1e-9

WordSet = tuple[int, ...]
"""The numbers of a set's words, each once."""


class WordNumbers:
    """Numbers words in the order in which they are first met. A pair of characters holds a space."""

    def __init__(self) -> None:
        self._number_by_word: dict[str, int] = {}

    @property
    def pairs(self) -> frozenset[int]:
        """The numbers of pairs of characters among the words so far."""
        return frozenset(number for word, number in self._number_by_word.items() if " " in word)

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


class FewApart:
    """An index of sets that finds those that differ from another in few words, however short they are: names and small words.

    With at most k words that the other lacks, the two rarest of the words in common are among the k + 2 rarest of either set. Only sets
    with two such words in common are compared.

    Source: Xiao, Wang, Lin, Yu & Wang 2011, prefix filtering; Wang, Li & Feng 2012, with longer prefixes.

    Args:
        frequencies: in how many sets a word is; any order of the words would find the same sets, this one compares fewest.
        pairs: the numbers of pairs of characters.
    """

    def __init__(self, sets: Sequence[WordSet], frequencies: Mapping[int, int], pairs: AbstractSet[int]) -> None:
        self._sets, self._frequencies, self._pairs = sets, frequencies, pairs
        self._positions: dict[tuple[int, ...], list[int]] = {}
        for position, words in enumerate(sets):
            for rare in self._rare(words):
                self._positions.setdefault(rare, []).append(position)

    def near(self, words: WordSet) -> Iterator[int]:
        """Yield the positions of the sets that are few words apart from this one, each once; one that is equal, too."""
        own = frozenset(words)
        for position in {position for rare in self._rare(words) for position in self._positions.get(rare, ())}:
            other = self._sets[position]
            if abs(len(own) - len(other)) > PAIRS_APART:
                continue
            common = own.intersection(other)
            alone = own - common, [word for word in other if word not in common]
            n_alone = max(map(len, alone))
            if len(common) * APART < n_alone * IN_COMMON or self._share(common, IN_COMMON, PAIRS_IN_COMMON) < 1:
                continue
            if all(self._share(words_alone, APART, PAIRS_APART) <= 1 for words_alone in alone):
                yield position

    def _rare(self, words: WordSet) -> Iterator[tuple[int, ...]]:
        """Yield every two of the rarest words."""
        n_apart = APART if self._pairs.isdisjoint(words) else PAIRS_APART
        rarest = sorted(words, key=lambda word: (self._frequencies[word], word))[: n_apart + _SHARED]
        return combinations(rarest, _SHARED)

    def _share(self, words: Collection[int], of_words: int, of_pairs: int) -> Fraction:
        """Return the size of a set as a share of so many words, or so many pairs."""
        n_pairs = sum(word in self._pairs for word in words) if self._pairs else 0
        return Fraction(n_pairs, of_pairs) + Fraction(len(words) - n_pairs, of_words)


def _n_parts(length: int) -> int:
    """Return the number of parts in which sets of this length are compared: one more than the words in which a near set may differ."""
    return int(length * (1 - NEAR) / NEAR + _ROUNDING) + 1


def _parts(words: WordSet, n_parts: int) -> tuple[int, ...]:
    """Return the hash of each part of a set."""
    parts: list[list[int]] = [[] for _ in range(n_parts)]
    for word in words:
        parts[word % n_parts].append(word)
    return tuple(hash((k, *part)) for k, part in enumerate(parts))
