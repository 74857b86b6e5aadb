"""Word tokenisation, shared by all metrics that count words."""

import re
from collections.abc import Iterator, Sequence

_UNSEGMENTED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3040-\u30ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""Scripts that are written without spaces between words."""
_OPERATOR = (
    r"[+*=<>&|^~@#$\\{}\[\]¬±×÷\u2190-\u22ff]"
    r"|!=|(?<!\w)!(?=[\w(])"
    r"|(?<!\w)-(?=[\w(])|(?<=[\d)\]]\s)-(?=\s)|-(?=\s[\d(])|(?<=\b\w\s)-(?=\s\w\b)|-(?=[=>])|(?<=<)-"  # no hyphen or dash
    r"|(?<!\w)/|/(?!\w)"  # not in and/or
    r"|(?<!\d)(?<!\d\s)%"  # not in 40 %
)
"""What code and formulas consist of beside names and numbers; the punctuation of sentences is not among it."""
_WORD = re.compile(rf"(?=[^\W_])[{_UNSEGMENTED}]|(?:(?![{_UNSEGMENTED}])[^\W_])+|(?:{_OPERATOR})+")


def words(text: str) -> list[str]:
    """Return the lower-case words and the operators of a text; of scripts that do not separate words, the characters.

    Between spaces a whole Chinese sentence would be one word, so that two sentences overlap entirely or not at all. Characters as
    tokens: sacreBLEU's `zh` tokeniser (Post 2018, arXiv 1804.08771), here for the other such scripts, too. Without operators `x + 1` would
    equal `x - 1`; adjacent ones are one word, as in `!=` or `->`. Hyphens, slashes and percent signs of prose, and the punctuation of
    sentences, are no words.
    """
    return _WORD.findall(text.lower())


def n_grams(sequence: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Yield every n-gram in order; none if there are fewer than n words."""
    return zip(*(sequence[start:] for start in range(n)), strict=False)
