"""Pictures inside markdown artifacts: Prefect keeps the text, and a picture elsewhere could not be reached from its page."""

import base64
from pathlib import Path

_MOST_BYTES = 700_000
"""Artifacts should stay below a megabyte, and base64 adds a third."""


def embedded(picture: Path, title: str) -> str:
    """Return a PNG as a Markdown image that carries its data; where it is, when it is too large for that."""
    data = picture.read_bytes()
    if len(data) > _MOST_BYTES:
        return f"{title}: `{picture}`"
    return f"![{title}](data:image/png;base64,{base64.b64encode(data).decode()})"
