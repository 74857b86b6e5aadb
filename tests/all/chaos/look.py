"""Checks after a fault, from the files and the database alone."""

import csv
import json
import re
from collections import Counter
from io import StringIO
from pathlib import Path

from safetensors import safe_open

from clusterlora.ports.stores import Stores

_TRAINED = re.compile(r"^\S+ \S+ (\S+): loss ", re.MULTILINE)


def finished(stores: Stores, study: str) -> frozenset[str]:
    """Return the names of the adapters that the study holds."""
    names = {name for name, _, _ in stores.studies.studies()}
    return frozenset(a.name for a in stores.studies.adapters(study)) if study in names else frozenset()


def trainings(stores: Stores, study: str) -> Counter[str]:
    """Return how often each adapter came out of a training, by what the trainings wrote into their logs."""
    logs = sorted((stores.folder(study) / "logs").glob("*_training.log"))
    return Counter(name for log in logs for name in _TRAINED.findall(log.read_text(encoding="utf-8", errors="replace")))


def half_written(stores: Stores) -> tuple[str, ...]:
    """Return the files that people or programs can see and that are not whole. Logs grow; names that begin with a dot are not seen."""
    paths: list[str] = []
    for file in sorted(stores.home.rglob("*")):
        seen = file.relative_to(stores.home)
        if file.is_file() and file.suffix in _WHOLE and not any(part.startswith(".") and part != ".adapters" for part in seen.parts):
            try:
                whole = _WHOLE[file.suffix](file)
            except Exception:  # noqa: BLE001  (whatever a reader says of half a file)
                whole = False
            if not whole:
                paths.append(str(seen))
    return tuple(paths)


def _opens(file: Path) -> bool:
    with safe_open(file, "pt") as tensors:
        return all(tensors.get_tensor(name) is not None for name in tensors.keys())  # noqa: SIM118  (safetensors is no mapping)


_WHOLE = {
    ".json": lambda file: json.loads(file.read_text(encoding="utf-8")) is not None,
    ".safetensors": _opens,
    ".csv": lambda file: (
        file.read_bytes().endswith(b"\n") and len({len(row) for row in csv.reader(StringIO(file.read_text("utf-8")))}) == 1
    ),
    ".md": lambda file: file.read_bytes().endswith(b"\n"),
    ".png": lambda file: file.read_bytes().endswith(b"IEND\xaeB`\x82"),
    ".html": lambda file: file.read_text(encoding="utf-8").rstrip().endswith("</html>"),
}
