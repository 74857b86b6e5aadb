"""Where phrases stand in a text: all of them, found in one pass over its words."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence

Words = tuple[str, ...]


class Phrases:
    """Phrases by number, to be found in texts in time proportional to their words and to what is found, however many phrases there are.

    A trie of the phrases, where every node links to the longest end of its words that begins a phrase.
    Source: Aho & Corasick 1975, Efficient string matching.
    """

    def __init__(self, phrases: Sequence[Words]) -> None:
        self._phrases = phrases
        self._children: list[dict[str, int]] = [{}]
        self._number_by_node: dict[int, int] = {}
        self._depth = [0]
        self._only: list[int | None] = [None]
        """The phrase that begins with the words of a node; None where several do."""
        for number, phrase in enumerate(phrases):
            node = 0
            for depth, word in enumerate(phrase, 1):
                node = self._children[node].setdefault(word, len(self._children))
                if node == len(self._children):
                    self._children.append({})
                    self._depth.append(depth)
                    self._only.append(number)
                else:
                    self._only[node] = None
            self._number_by_node[node] = number
        self._link = [0] * len(self._children)
        self._next_end = [0] * len(self._children)
        """The node of the longest phrase with which the words of a node end, but for themselves; 0, the root, if there is none."""
        queue = deque([0])
        while queue:
            node = queue.popleft()
            for word, child in self._children[node].items():
                self._link[child] = link = self._step(self._link[node], word) if node else 0
                self._next_end[child] = link if link in self._number_by_node else self._next_end[link]
                queue.append(child)

    def found_in(self, words: Words) -> Iterator[tuple[int, int]]:
        """Yield where a phrase starts, and its number, for every occurrence. Phrases without words are nowhere."""
        node = 0
        for end, word in enumerate(words, 1):
            node = self._step(node, word)
            at = node if node in self._number_by_node else self._next_end[node]
            while at:
                number = self._number_by_node[at]
                yield end - len(self._phrases[number]), number
                at = self._next_end[at]

    def begun_in(self, words: Words, ends: Collection[int]) -> Iterator[tuple[int, int, int | None]]:
        """Yield start, end and number wherever the words before one of `ends` are the beginning of a phrase: the longest there is.

        Several phrases that begin so have no number. The last word, which may be cut itself, is left out a second time.
        """
        node = 0
        for end, word in enumerate(words, 1):
            before, node = node, self._step(node, word)
            if end in ends:
                yield from ((at - self._depth[of], end, self._only[of]) for of, at in ((node, end), (before, end - 1)) if of)

    def _step(self, node: int, word: str) -> int:
        while node and word not in self._children[node]:
            node = self._link[node]
        return self._children[node].get(word, 0)
