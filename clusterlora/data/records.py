"""Ids, texts and turns out of raw records: each function returns the checked value, or None after adding a problem."""

import math
import unicodedata
from collections.abc import Container, Mapping, Sequence
from itertools import count
from typing import Any

from clusterlora.data.problems import Problems, SourceLocation
from clusterlora.values import Role, Split, Turn

MAX_ID_CHARACTERS = 200
MAX_TEXT_CHARACTERS = 100_000

SPLIT_NAMES: Mapping[str, Split] = {"train": "train", "val": "val", "validation": "val", "valid": "val", "dev": "val", "test": "test"}
"""Splits by what people call them."""

_CONTROL = {"Cc", "Cs", "Zl", "Zp"}
_ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


def identifier(value: object, place: SourceLocation, field: str, problems: Problems) -> str | None:
    """Return an id as text. Ids are data: any characters that can be shown are fine, `../../x` included."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        problems.add(place, field, _found(value), "write a string or a whole number")
        return None
    text = str(value)
    if not text.strip():
        problems.add(place, field, "is empty", "give every record its id")
    elif len(text) > MAX_ID_CHARACTERS:
        problems.add(place, field, f"has {len(text)} characters", f"use at most {MAX_ID_CHARACTERS}")
    elif bad := next((c for c in text if unicodedata.category(c) in _CONTROL), None):
        problems.add(place, field, f"{text!r} holds the control character U+{ord(bad):04X}", "remove it")
    else:
        return text
    return None


def words(value: object, place: SourceLocation, field: str, problems: Problems) -> str | None:
    """Return a text that says something and that a database can keep."""
    if not isinstance(value, str):
        problems.add(place, field, _found(value), "write a string")
    elif not value.strip():
        problems.add(place, field, "is empty", "fill it in or remove the record")
    elif len(value) > MAX_TEXT_CHARACTERS:
        problems.add(place, field, f"has {len(value):,} characters", f"use at most {MAX_TEXT_CHARACTERS:,}")
    elif "\0" in value:
        problems.add(place, field, "holds a NUL character", "remove it")
    elif not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        problems.add(place, field, "holds half a surrogate pair", "write the whole character")
    else:
        return value
    return None


def words_or_number(value: object, place: SourceLocation, field: str, problems: Problems) -> str | None:
    """Return a short answer, such as a label, that a file may hold as a text or as a number; a number with all of its digits."""
    if isinstance(value, bool) or value is None or (isinstance(value, float) and not math.isfinite(value)):
        problems.add(place, field, _found(value), "write a text or a finite number")
        return None
    return words(str(value) if isinstance(value, int | float) else value, place, field, problems)


def numbered(name: str, used: Container[str]) -> str:
    """Return the name, with a number if it is used already."""
    return name if name not in used else next(one for n in count(2) if (one := f"{name}.{n}") not in used)


def turns(value: object, place: SourceLocation, field: str, problems: Problems) -> tuple[Turn, ...] | None:
    """Return the turns of `[{"role": ..., "text" or "content": ...}, ...]`; a system turn may only come first."""
    if not isinstance(value, list):
        problems.add(place, field, _found(value), 'write a list of {"role", "text"}')
        return None
    before = problems.count
    read = [_turn(message, index, place, f"{field}[{index}]", problems) for index, message in enumerate(value)]
    if problems.count > before:
        return None
    checked = tuple(turn for turn in read if turn is not None)
    if not _answered(checked):
        problems.add(
            place, field, "the assistant never answers the user", "give the dialogue an assistant turn after a user turn, or remove it"
        )
        return None
    return checked


def unread_fields(value: object) -> list[str]:
    """Return the names of what messages hold and `turns` does not read, each once: tool calls, names, weights."""
    messages = [message for message in value if isinstance(message, dict)] if isinstance(value, list) else []
    named = (str(name) for message in messages for name, entry in message.items() if entry is not None and name not in _read_of(message))
    return list(dict.fromkeys(named))


def _read_of(message: Mapping[object, object]) -> tuple[str, str]:
    return "role", _text_field(message)


def _text_field(message: Mapping[Any, object]) -> str:
    return "text" if message.get("text") is not None else "content"


def _turn(message: object, index: int, place: SourceLocation, field: str, problems: Problems) -> Turn | None:
    if not isinstance(message, dict):
        problems.add(place, field, _found(message), 'write {"role", "text"}')
        return None
    role = _ROLES.get(message["role"]) if isinstance(message.get("role"), str) else None
    if role is None:
        problems.add(place, f"{field}.role", _found(message.get("role")), f"use one of {', '.join(_ROLES)}")
    elif role == "system" and index:
        problems.add(place, f"{field}.role", "a system turn in the middle", "put it first or remove it")
    key = _text_field(message)
    if message.get(key) is None:
        problems.add(place, field, "has neither text nor content", 'write {"role", "text"}')
        return None
    text = words(message[key], place, f"{field}.{key}", problems)
    return Turn(role, text) if role is not None and text is not None else None


def _answered(checked: Sequence[Turn]) -> bool:
    roles = [turn.role for turn in checked]
    return "user" in roles and "assistant" in roles[roles.index("user") :]


def scalars(value: object, place: SourceLocation, field: str, problems: Problems) -> tuple[tuple[str, str], ...] | None:
    """Return an object of plain values as pairs of text, in its order."""
    if not isinstance(value, dict):
        problems.add(place, field, _found(value), 'write an object such as {"weather": "sunny"}')
        return None
    pairs: list[tuple[str, str]] = []
    for name, entry in value.items():
        text = words(str(entry) if isinstance(entry, int | float) else entry, place, f"{field}.{name}", problems)
        if text is None:
            return None
        pairs.append((str(name), text))
    return tuple(pairs)


def _found(value: Any) -> str:
    if value is None:
        return "is missing"
    shown = repr(value)
    return f"is {type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"
