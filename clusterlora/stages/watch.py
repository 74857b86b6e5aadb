"""Whether a file of dialogues has changed and has something for a study's next refresh: asked again and again, answered once per change."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from clusterlora.errors import BadData
from clusterlora.metadata import WatchedFile
from clusterlora.ports.stores import Stores
from clusterlora.stages.refresh import due

SETTLED_SECONDS = 10.0
"""How long nothing may have been written before a file is read: whoever writes it may be in the middle."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a file found. `digest` is of what has news for a refresh; None where there is no reason to start one."""

    sentence: str
    digest: str | None = None


def look(root: str, path: str, stores: Stores) -> Look:
    """Return whether the file or folder differs from what was last looked at, can be read, and has news.

    What cannot be read, such as a file that is half written, is looked at again the next time. Whoever asks for a refresh then calls
    `acted_on`.

    Raises:
        BadSettings: the study is a refresh itself.
        UnknownName: there is no such study.
    """
    stores.studies.study(root)
    files = _files(Path(path))
    if not files:
        return Look(f"{path}: is not there, or empty")
    # Files from a machine whose clock is ahead count as settled once they stay as they are.
    age = abs(time.time() - max(file.stat().st_mtime for file in files))
    if age < SETTLED_SECONDS:
        return Look(f"{path}: was written {age:.0f} s ago and may be half written; looked at again the next time")
    digest = _digest(Path(path), files)
    if stores.studies.metadata(root, WatchedFile) == WatchedFile(path, digest):
        return Look(f"{path}: unchanged")
    try:
        study = due(root, path, stores)
    except BadData as problem:
        first, *others = str(problem).splitlines()
        more = f" (and {len(others)} more lines)" if others else ""
        return Look(f"{path}: cannot be read and is looked at again the next time: {first}{more}")
    if study is None:
        acted_on(root, path, digest, stores)
        return Look(f"{path}: changed, without anything new to learn and test")
    return Look(f"{path}: changed; the next refresh is {study.name}", digest)


def acted_on(root: str, path: str, digest: str, stores: Stores) -> None:
    """Record that a file needs no further look until it changes again."""
    stores.studies.save_metadata(root, WatchedFile(path, digest))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() and path.stat().st_size else []


def _digest(path: Path, files: list[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.relative_to(path) if file != path else ''}\0".encode(errors="surrogateescape"))
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()
