"""Duplicate dialogues: equal after normalising case, space and punctuation, or with nearly the same set of words."""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

from clusterlora.data.listed_things import ListedThings
from clusterlora.data.near_sets import NearSets, WordNumbers
from clusterlora.data.words import is_character, words
from clusterlora.values import Dialogue

_SHORT = 500
"""Characters of a text up to which it is short: that of most turns."""


def normalised_text(dialogue: Dialogue) -> str:
    """Return the normalised words that user and assistant said; the system turn may be the same for everybody."""
    return normalize(" ".join(turn.text for turn in dialogue.turns if turn.role != "system"))


def normalize(text: str) -> str:
    """Return the case-folded words of a text, separated by single spaces; of a text without words, its characters."""
    return _normalised_short(text) if len(text) <= _SHORT else _normalised_long(text)


def _normalised(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(words(plain)) or plain.strip()


# Data is gone through some twenty times. Of short texts all are kept, in 65 MB at the most; of long ones, those of a few people.
_normalised_short = lru_cache(maxsize=2**16)(_normalised)
_normalised_long = lru_cache(maxsize=2**12)(_normalised)


def pieces(text: str) -> list[str]:
    """Return what sets of a normalised text's words are compared by: its words, and for characters in a row every two neighbours.

    Texts of one language soon have most characters of an alphabet in common, but few pairs. A space tells these from words.
    """
    found: list[str] = []
    if text.isascii():
        return text.split()
    run: list[str] = []
    for word in (*text.split(), ""):
        if word and is_character(word):
            run.append(word)
            continue
        found.extend(run if len(run) == 1 else map(" ".join, pairwise(run)))
        run.clear()
        found.append(word)
    return found[:-1]


def n_words(words_or_characters: Iterable[str]) -> float:
    """Return the number of words, two characters of a script without spaces as one."""
    return sum(0.5 if not word.isascii() and is_character(word) else 1.0 for word in words_or_characters)


def duplicate_groups(dialogues: Sequence[Dialogue], *, labelled: bool = False) -> tuple[tuple[int, ...], ...]:
    """Return groups of positions: the transitive closure of being equal or nearly equal.

    Where answers are labels, what is labelled is compared: what the user said without the words that all of the dialogues share. Two that
    ask about different things are none for a list of what was labelled so far, in which one of them has the other's thing.
    """
    texts = _labelled_texts(dialogues) if labelled else [normalised_text(dialogue) for dialogue in dialogues]
    first_with_text: dict[str, int] = {}
    groups = UnionFind(len(texts))
    for position, text in enumerate(texts):
        groups.union(first_with_text.setdefault(text, position), position)
    distinct = sorted(first_with_text.values())
    numbers = WordNumbers()
    word_sets = [numbers.numbers(pieces(texts[position])) for position in distinct]
    index = NearSets(word_sets)
    listed: ListedThings | None = None
    for position, word_set in zip(distinct, word_sets, strict=True):
        for near in (distinct[number] for number in index.near(word_set)):
            if labelled and near != position:
                listed = listed or ListedThings(dialogues)
                if listed.lists(position, near) or listed.lists(near, position):
                    continue
            groups.union(near, position)
    return groups.groups()


def _labelled_texts(dialogues: Sequence[Dialogue]) -> list[str]:
    """Return the words that the user said in each dialogue, without an instruction that is the same in all of them."""
    asked = [normalize(" ".join(turn.text for turn in dialogue.turns if turn.role == "user")).split() for dialogue in dialogues]
    common = set[str]().union(*asked[:1]).intersection(*asked[1:])
    return [" ".join(word for word in own if word not in common) for own in asked]


class UnionFind:
    """Disjoint sets of the positions 0..n-1."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def union(self, left: int, right: int) -> None:
        """Merge the groups of two positions."""
        self._parent[self._root(right)] = self._root(left)

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Return the groups, ordered by their first positions."""
        members: dict[int, list[int]] = {}
        for position in range(len(self._parent)):
            members.setdefault(self._root(position), []).append(position)
        return tuple(tuple(group) for group in members.values())

    def _root(self, position: int) -> int:
        while self._parent[position] != position:
            self._parent[position] = position = self._parent[self._parent[position]]
        return position
