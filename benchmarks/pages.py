"""Rewrites the pages of measurements in docs/ from their JSON files: python -m benchmarks.pages"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import report, scale
from benchmarks.gpu import page as gpu_page
from benchmarks.gpu.results import FILE
from clusterlora.durable import write_durably
from tests.all.chaos import record

DOCS = Path(__file__).resolve().parents[1] / "docs"


def _scale() -> str:
    return scale.page(json.loads((DOCS / "scale.json").read_text(encoding="utf-8")), DOCS / "benchmarks-avx2.json")


PAGES: Mapping[str, Callable[[], str]] = {
    "benchmarks": lambda: report.page(DOCS / "benchmarks.json"),
    "benchmarks-avx2": lambda: report.page(DOCS / "benchmarks-avx2.json"),
    "scale": _scale,
    **({"gpu": lambda: gpu_page.page(DOCS / FILE)} if (DOCS / FILE).is_file() else {}),
    "reliability": lambda: record.page(record.read(DOCS / "reliability.json")),
}
"""Renderer by name of the page in docs/."""


if __name__ == "__main__":
    for name, render in PAGES.items():
        write_durably(DOCS / f"{name}.md", render().encode())
