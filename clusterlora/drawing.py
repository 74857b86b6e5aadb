"""Writes figures as PNG, in fonts that have the characters of their texts: file names and what people wrote may be in any script."""

import io
import logging
import unicodedata
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from matplotlib import get_data_path, rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.text import Text

from clusterlora.durable import write_durably

log = logging.getLogger(__name__)

_DEFAULT = "DejaVu Sans"
"""Comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew, Armenian, Georgian, and the older emoji in black."""
_PREFERRED = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback"),
    *("Noto Sans CJK JP", "Noto Sans CJK KR", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji", "Symbola", "Segoe UI Emoji", "Unifont"),
)
"""Families that are tried first, for many fonts that have a character have it by accident."""
_PACKAGES = (("CJK", "fonts-noto-cjk"), ("HANGUL", "fonts-noto-cjk"), ("HIRAGANA", "fonts-noto-cjk"), ("KATAKANA", "fonts-noto-cjk"))
"""Debian's packages by the beginning of a character's Unicode name; emoji and other scripts are in `fonts-symbola`, `fonts-noto-core`."""


def write_png(compose: Callable[[], Figure], path: Path) -> None:
    """Write the figure that `compose` returns, atomically.

    Where the default font lacks characters of its texts, installed fonts that have them follow it. What no font has is drawn as a box, and
    one warning and a line on the picture say which characters and which font to install.
    """
    figure = compose()
    missing = _missing(_texts(figure), (_DEFAULT,))
    if missing:
        families = fonts_for(missing)
        with rc_context({"font.family": [_DEFAULT, *families]}):
            figure = compose()
        if lacking := _missing(missing, families):
            log.warning("%s: %s", path.name, advice(lacking, lacking))
            # As numbers: the picture cannot show the characters themselves.
            figure.supxlabel(advice(lacking, [f"U+{ord(one):04X}" for one in sorted(lacking)]), x=0.01, ha="left", fontsize=8)
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Said above, once for all characters.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format="png")
    write_durably(path, content.getvalue())


def fonts_for(characters: Iterable[str]) -> tuple[str, ...]:
    """Return the installed families, preferred ones first, that between them have as many of these characters as any font here has."""
    wanted = frozenset(characters)
    # Matplotlib's own further fonts are for formulas, and its last resort draws a box for every character.
    own = Path(get_data_path()).resolve()
    installed = {font.name for font in fontManager.ttflist if not Path(font.fname).resolve().is_relative_to(own)}
    families: list[str] = []
    for family in (*(name for name in _PREFERRED if name in installed), *sorted(installed.difference(_PREFERRED))):
        if not wanted:
            break
        if found := wanted & _characters(family):
            families.append(family)
            wanted -= found
    return tuple(families)


def advice(characters: Iterable[str], shown_as: Iterable[str]) -> str:
    """Return which characters, shown so, no installed font has, and what to install."""
    lacking, names_shown = sorted(characters), sorted(shown_as)
    names = [unicodedata.name(character, "") for character in lacking]
    packages = sorted(
        {next((package for script, package in _PACKAGES if name.startswith(script)), "fonts-noto-core fonts-symbola") for name in names}
    )
    shown = " ".join(names_shown[:8]) + (" ..." if len(lacking) > 8 else "")
    characters_shown = "1 character is" if len(lacking) == 1 else f"{len(lacking)} characters are"
    return f"{characters_shown} drawn as boxes, no installed font has them ({shown}); on Debian: apt-get install {' '.join(packages)}"


def _texts(figure: Figure) -> frozenset[str]:
    """Return the characters of all texts of a figure, without spaces."""
    shown = "".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))
    return frozenset(character for character in shown if character.isprintable() and not character.isspace())


def _missing(characters: frozenset[str], families: Iterable[str]) -> frozenset[str]:
    # Variation selectors, joiners and marks combine with their neighbours.
    drawn = frozenset(character for character in characters if unicodedata.category(character)[0] not in "MC")
    return drawn.difference(*(_characters(family) for family in families))


@lru_cache(maxsize=256)
def _characters(family: str) -> frozenset[str]:
    """Return the characters of a family; none where matplotlib cannot draw the font, such as one of coloured bitmaps."""
    # Matplotlib's own look-up warns of every family that has no face of normal weight.
    files = sorted((font.style != "normal", font.fname) for font in fontManager.ttflist if font.name == family)
    if not files:
        return frozenset()
    try:
        font = get_font(files[0][1])
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()
