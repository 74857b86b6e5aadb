"""Which dialogues say the same thing: equal once case, space and punctuation are folded, or nearly the same set of words."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from clusterlora.values import Dialogue

NEAR = 0.9
"""Jaccard similarity of word sets from which two dialogues of one persona count as near duplicates."""

_WORD = re.compile(r"\w+")


def folded(dialogue: Dialogue) -> str:
    """Return all words of a dialogue in one case; of a dialogue without a word, its characters."""
    return fold(" ".join(turn.text for turn in dialogue.turns))


def fold(text: str) -> str:
    """Return a text's words in one case, separated by single spaces."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(plain)) or plain.strip()


def duplicate_groups(dialogues: Sequence[Dialogue]) -> tuple[tuple[int, ...], ...]:
    """Return the positions of the dialogues in groups: what is equal or nearly equal, directly or through others, is together."""
    texts = [folded(dialogue) for dialogue in dialogues]
    first_with: dict[str, int] = {}
    joined = Partition(len(texts))
    for position, text in enumerate(texts):
        joined.join(first_with.setdefault(text, position), position)
    distinct = sorted(first_with.values())
    for one, other in _near_pairs([frozenset(texts[position].split()) for position in distinct]):
        joined.join(distinct[one], distinct[other])
    return joined.groups()


class Partition:
    """Positions 0..n-1 joined into groups (union-find)."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def join(self, one: int, other: int) -> None:
        """Put the groups of two positions together."""
        self._parent[self._root(other)] = self._root(one)

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Return the groups in the order of their first positions."""
        members: dict[int, list[int]] = {}
        for position in range(len(self._parent)):
            members.setdefault(self._root(position), []).append(position)
        return tuple(tuple(group) for group in members.values())

    def _root(self, position: int) -> int:
        while self._parent[position] != position:
            self._parent[position] = position = self._parent[self._parent[position]]
        return position


def _near_pairs(word_sets: Sequence[frozenset[str]]) -> Iterator[tuple[int, int]]:
    """Yield the pairs with Jaccard similarity of at least NEAR.

    Two sets that similar share a word among the few rarest of each, so only sets that do are compared.
    Source: Bayardo, Ma & Srikant 2007, prefix filtering.
    """
    frequency = Counter(word for word_set in word_sets for word in word_set)
    holders: dict[str, list[int]] = {}
    for position, word_set in enumerate(word_sets):
        rarest = sorted(word_set, key=lambda word: (frequency[word], word))[: len(word_set) - math.ceil(NEAR * len(word_set) - 1e-9) + 1]
        for candidate in {holder for word in rarest for holder in holders.get(word, ())}:
            common = len(word_set & word_sets[candidate])
            if common >= NEAR * (len(word_set) + len(word_sets[candidate]) - common):
                yield candidate, position
        for word in rarest:
            holders.setdefault(word, []).append(position)
