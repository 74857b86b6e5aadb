"""Images in artifacts: the data is embedded, unless it is too large."""

import base64
from pathlib import Path

from tasks.artifacts import embedded_image


def test_an_image_is_embedded_in_its_markdown(tmp_path: Path):
    image = tmp_path / "figure.png"
    image.write_bytes(b"\x89PNG and more")
    markdown = embedded_image(image, "all methods")
    assert markdown.startswith("![all methods](data:image/png;base64,")
    assert base64.b64decode(markdown.partition("base64,")[2].removesuffix(")")) == b"\x89PNG and more"


def test_an_image_too_large_for_an_artifact_is_replaced_by_its_path(tmp_path: Path):
    image = tmp_path / "figure.png"
    image.write_bytes(bytes(800_000))
    assert embedded_image(image, "all methods") == f"all methods: `{image}`"
