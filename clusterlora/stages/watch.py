"""Whether a file of dialogues has changed and has something for a study's next refresh: asked again and again, told until it is taken."""

import hashlib
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clusterlora.errors import BadData
from clusterlora.metadata import WatchedFile, WatchedFiles
from clusterlora.ports.stores import Stores
from clusterlora.settings import PreparedStudy
from clusterlora.stages.refresh import has_news, in_line

SETTLED_SECONDS = 10.0
"""How long nothing may have been written before a file is read: whoever writes it may be in the middle."""

PATIENCE_SECONDS = 600.0
"""How long after a refresh was asked for no other is: its run may not have been created yet."""

MOST_ASKED = 3
"""How often a refresh is asked for the same content; what then is still news is left to a person."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a file found, in a sentence, and whether that is to be told: that a refresh is due, or was asked for in vain."""

    sentence: str
    tell: Literal["due", "left"] | None = None


def look(root: str, path: str, stores: Stores, now: float) -> Look:
    """Return whether the file or folder can be read and has news that no refresh has taken; no refresh of the study may be under way.

    What cannot be read, such as a file that is half written, is looked at again the next time. News are told again, up to MOST_ASKED times,
    until they are in a refresh: what is told may be lost, and a run may fail. Each time is recorded before it is told.

    Args:
        now: seconds since 1970.

    Raises:
        BadSettings: the study is a refresh itself.
        UnknownName: there is no such study.
    """
    stores.studies.study(root)
    try:
        files = _files(Path(path))
        if not files:
            return Look(f"{path}: is not there, or empty")
        # Files from a machine whose clock is ahead count as settled once they stay as they are.
        age = abs(now - max(file.stat().st_mtime for file in files))
        if age < SETTLED_SECONDS:
            return Look(f"{path}: was written {age:.0f} s ago and may be half written; looked at again the next time")
        content = WatchedFile(path, _digest(Path(path), files))
    except OSError as error:
        return Look(f"{path}: cannot be read and is looked at again the next time: {error.strerror or error}")
    watched = _watched(root, stores)
    known = next((file for file in watched if (file.path, file.digest) == (content.path, content.digest)), content)
    if known.done:
        return Look(f"{path}: unchanged")
    if (since := min(abs(now - file.asked_at) for file in (*watched, content))) < PATIENCE_SECONDS:
        return Look(f"{path}: not looked at, as a refresh was asked for {since:.0f} s ago")
    try:
        study, tokenizer = in_line(root, path, stores)
    except BadData as problem:
        return Look(f"{path}: not looked at: {problem}")
    try:
        if tokenizer is not None and not has_news(study, tokenizer, stores):
            _save(root, replace(known, done=True), stores)
            return Look(f"{path}: {'taken' if known.n_asked else 'changed'}, without anything new to learn and test")
    except BadData as problem:
        first, *others = str(problem).splitlines()
        more = f" (and {len(others)} more lines)" if others else ""
        return Look(f"{path}: cannot be read and is looked at again the next time: {first}{more}")
    if _watched(root, stores) != watched:
        return Look(f"{path}: not looked at, as another look ended meanwhile")
    return _asked(known, study, root, now, stores)


def _save(root: str, file: WatchedFile, stores: Stores) -> None:
    """Record what is known of a watched file, in place of what was known of that path."""
    others = (one for one in _watched(root, stores) if one.path != file.path)
    stores.studies.save_metadata(root, WatchedFiles((*others, file)))


def _asked(file: WatchedFile, study: PreparedStudy, root: str, now: float, stores: Stores) -> Look:
    """Return the look at a file that has news, or comes after a refresh that has not ended: one more request, or that there are no more."""
    if file.n_asked < MOST_ASKED:
        _save(root, replace(file, n_asked=file.n_asked + 1, asked_at=now), stores)
        again = f", asked for {file.n_asked + 1} times" if file.n_asked else ""
        return Look(f"{file.path}: changed; the next refresh is {study.name}{again}", "due")
    begun = study.name in (name for name, *_ in stores.studies.studies())
    command = f"study run --name {study.name}" if begun else f"study refresh {root} --data {shlex.quote(file.path)}"
    sentence = (
        f"{file.path}: refresh {study.name} was asked for {MOST_ASKED} times and has not ended; look at the runs of the deployment "
        f"`refresh` and at its automation in Prefect, then run: clusterlora {command}"
    )
    if file.n_asked > MOST_ASKED:
        return Look(sentence)
    _save(root, replace(file, n_asked=file.n_asked + 1), stores)
    return Look(sentence, "left")


def _watched(root: str, stores: Stores) -> tuple[WatchedFile, ...]:
    return (stores.studies.metadata(root, WatchedFiles) or WatchedFiles()).files


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
