"""Words, as every metric that counts them sees them."""

import re
from collections.abc import Iterator, Sequence

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Return the lower-case words of a text, of any script, without punctuation."""
    return _WORD.findall(text.lower())


def n_grams(sequence: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Yield every run of n neighbouring words, in order; none when there are fewer words."""
    return zip(*(sequence[start:] for start in range(n)), strict=False)
