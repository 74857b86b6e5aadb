"""JSON from outside: a key that stands twice in an object is no JSON here."""

import json
from collections import Counter
from typing import Any


class RepeatedKey(ValueError):
    """A key stands twice in one JSON object, of whose values Python would keep the last."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key!r} stands twice in an object; keep one of the two")
        self.key = key


def parsed(text: str | bytes) -> Any:
    """Return the content of a JSON text from outside.

    Raises:
        ValueError: it is no JSON, or (RepeatedKey) an object has a key twice.
        RecursionError: its brackets are nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RepeatedKey(next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1))
    return found
