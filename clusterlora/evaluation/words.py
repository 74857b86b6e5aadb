"""Word tokenisation, shared by all metrics that count words."""

import re
from collections.abc import Iterator, Sequence

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Return the lower-case words of a text, of any script, without punctuation."""
    return _WORD.findall(text.lower())


def n_grams(sequence: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Yield every n-gram in order; none if there are fewer than n words."""
    return zip(*(sequence[start:] for start in range(n)), strict=False)
