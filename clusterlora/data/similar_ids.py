"""Ids of people, or labels, that look alike: perhaps one, written in several ways."""

import re
import unicodedata
from collections.abc import Iterable

_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]")
"""Characters that are shown as nothing and are not in category Cf: joiners, fillers, variation selectors, the empty cell of Braille.

Source: Unicode, DerivedCoreProperties.txt, Default_Ignorable_Code_Point."""


def similar_ids(persona_ids: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of ids that differ only by Unicode's normalisation, case, blanks or characters without width."""
    groups: dict[str, list[str]] = {}
    for persona_id in persona_ids:
        groups.setdefault(_plain(persona_id), []).append(persona_id)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _plain(persona_id: str) -> str:
    text = unicodedata.normalize("NFKC", persona_id).casefold()
    visible = "".join(character for character in text if unicodedata.category(character) != "Cf" and not _UNSEEN.match(character))
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", visible))


def described(groups: Iterable[Iterable[str]]) -> str:
    """Return groups of ids for a message; what cannot be seen is escaped."""
    return "; ".join(" and ".join(visible(persona_id) for persona_id in group) for group in groups)


def visible(text: str) -> str:
    """Return an id or a label in quotes; characters that another could hold unseen are escaped, once."""
    plain = text.isascii() or (unicodedata.normalize("NFC", text) == text and not _UNSEEN.search(text))
    # repr escapes what is not printable.
    return repr(text) if plain else ascii(text)
