"""Word tokenisation, shared by all metrics that count words."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

_UNSEGMENTED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u1980-\u19df\u1a20-\u1aad"  # New Tai Lue, Lanna
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u3040-\u30ff\uff66-\uff9f"  # Hiragana, Katakana
    "\ua000-\ua4cf"  # Yi
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""Scripts that are written without spaces between words."""
_IS_UNSEGMENTED = re.compile(f"[{_UNSEGMENTED}]")
_SYMBOL = r"[+*=<>&|^~@#$\\{}\[\]¬±×÷\u2190-\u22ff]|!="
_CODE = re.compile(r"```.*?(?:```|\Z)|(?<!`)`[^`\s][^`\n]*`(?!`)|^[^\n]*=[^\n]*", re.DOTALL | re.MULTILINE)
"""What is certainly code: between backticks, and a line with an equals sign."""
_JOINERS = "\u200c\u200d"
"""Zero-width characters within words of Persian and of Indian scripts."""


def words(text: str, *, code: bool = False) -> list[str]:
    """Return the lower-case words and the operators of a text; of scripts that do not separate words, the characters.

    Combining marks stay with their letter: without them the Hindi words for `of`, feminine and masculine, are equal. Between spaces a whole
    Chinese sentence would be one word, so that two sentences overlap entirely or not at all. Characters as tokens: sacreBLEU's `zh`
    tokeniser (Post 2018, arXiv 1804.08771), here for the other such scripts, too.

    Without operators `x + 1` would equal `x - 1`; adjacent ones are one word, as in `!=` or `->`. Hyphens, slashes and percent signs of
    prose, and the punctuation of sentences, are no words. A hyphen or slash without spaces is an operator between single small letters, or
    one and a number (`x-1`, `a/b`).

    A tokeniser of its own, because those of NLTK and sacreBLEU make words of the punctuation of sentences and know no code, and
    rouge-score's, to which this one is equal on plain English, knows ASCII only.

    Args:
        code: whether what is certainly code, between backticks or in a line with an equals sign, is read as such: every hyphen and slash
            is an operator there (`total-count`, `10/2`), and each of `.,:;?!()"'` is a word, as `f(a), b` is not `f(a, b)`. To find one
            text in another it must not be: the other may stand between backticks.
    """
    text = unicodedata.normalize("NFC", text)
    of_prose, of_code = _patterns("" if text.isascii() else _marks())
    tokens: list[str] = []
    end = 0
    for block in _CODE.finditer(text) if code and ("=" in text or "`" in text) else ():
        tokens += of_prose.findall(text, end, block.start())
        tokens += of_code.findall(text, block.start(), block.end())
        end = block.end()
    tokens += of_prose.findall(text, end)
    return [token.lower() for token in tokens]


def is_character(word: str) -> bool:
    """Return whether a word, as `words` finds it, is a character of a script that does not separate words, with its marks."""
    return _IS_UNSEGMENTED.match(word) is not None


@cache
def _patterns(marks: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a token in prose and in code, for texts with these marks."""
    char, of_word = rf"[^\W_][{marks}]*" if marks else r"[^\W_]", rf"[\w{marks}]"
    word = rf"(?=[{_UNSEGMENTED}]){char}|(?:(?![{_UNSEGMENTED}]){char})+"
    bang = rf"(?<!{of_word})!(?=[\w(])"
    prose = (
        rf"{_SYMBOL}|{bang}"
        r"|(?<=\b[b-z])--(?=\s*(?:\Z|[;,)\]=+*/<>&|]))|(?<![\w,:-])(?<!\w\s)--(?=[a-z]\b(?!\s+\w|'))"  # not -- as a dash
        rf"|(?<!{of_word})-(?=[\w(])|(?<=[\d)\]]\s)-(?=\s)|-(?=\s[\d(])|(?<=\b\w\s)-(?=\s\w\b)|-(?=[=>(])|(?<=<)-"  # no hyphen or dash
        rf"|(?<!{of_word})/|/(?!\w)"  # not in and/or
        r"|(?<=\b[a-z])[-/](?=[a-z]\b|\d)|(?<=\d)[-/](?=[a-z]\b)"  # not in e-mail, 24/7 or A/C
        r"|(?<!\d)(?<!\d\s)%|%(?=\d)|(?<=\d\s)%(?=\s\d)"  # not in 40 %
    )
    return re.compile(rf"{word}|(?:{prose})+"), re.compile(rf"{word}|(?:{_SYMBOL}|{bang}|[-/%])+|[.,:;?!()\"']")


@cache
def _marks() -> str:
    """Return the characters that belong to the letter before them: accents, vowel signs, tone marks; no variation of a symbol.

    All are in the first two planes of Unicode: of those after them, which take ten times as long, only variations of symbols are marks.
    """
    marks = (chr(code) for code in range(0x20000) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
    return "".join(mark for mark in marks if "VARIATION SELECTOR" not in unicodedata.name(mark, "")) + _JOINERS


def n_grams(sequence: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Yield every n-gram in order; none if there are fewer than n words."""
    return zip(*(sequence[start:] for start in range(n)), strict=False)
