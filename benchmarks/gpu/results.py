"""The results file: a record per part, each with the card, the revision and the command that it was measured with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clusterlora.durable import write_durably

FILE = "benchmarks-gpu.json"
FIGURES = (
    "135m-128", "135m-1", "0.5b-64", "8b-16", "1.5b-16", "135m-128-peers", "8b-16-peers", "answers-64", "pack-4096", "0.5b-64-peers",
    "1.5b-16-peers", "8b-nf4-16", "135m-128-unsloth", "1.5b-16-unsloth",
)  # fmt: skip
"""The parts that a whole page has figures of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one part measured. `failed` is the reason in one line why it ended without a result."""

    part: str
    command: str
    date: str
    seconds: float
    card: Mapping[str, Any]
    revision: str
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    failed: str | None = None


def read(file: Path) -> dict[str, Record]:
    """Return the records of a results file by part; none when there is no file."""
    if not file.is_file():
        return {}
    return {fields["part"]: Record(**fields) for fields in json.loads(file.read_text(encoding="utf-8"))["parts"]}


def write(records: Mapping[str, Record], file: Path) -> None:
    """Write a results file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = [rounded(asdict(record)) for record in records.values()]
    write_durably(file, (json.dumps({"parts": parts}, indent=1, ensure_ascii=False) + "\n").encode())


def rounded(value: Any) -> Any:
    """Return what a results file holds: four digits of every number."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
