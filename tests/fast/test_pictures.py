"""Pictures in artifacts: embedded, unless they are too large."""

import base64
from pathlib import Path

from tasks.pictures import embedded


def test_a_picture_is_embedded_in_its_markdown(tmp_path: Path):
    picture = tmp_path / "figure.png"
    picture.write_bytes(b"\x89PNG and more")
    shown = embedded(picture, "all methods")
    assert shown.startswith("![all methods](data:image/png;base64,")
    assert base64.b64decode(shown.partition("base64,")[2].removesuffix(")")) == b"\x89PNG and more"


def test_a_picture_too_large_for_an_artifact_is_replaced_by_its_path(tmp_path: Path):
    picture = tmp_path / "figure.png"
    picture.write_bytes(bytes(800_000))
    assert embedded(picture, "all methods") == f"all methods: `{picture}`"
