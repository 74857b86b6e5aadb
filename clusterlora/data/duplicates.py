"""Which dialogues say the same thing: equal once case, space and punctuation are folded, or nearly the same set of words."""

import re
import unicodedata

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
