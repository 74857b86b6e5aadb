"""Adapter weights as PEFT folders on disk, by content key. Every folder under a key is complete, synced to disk and free of pickles."""

import re
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from clusterlora.adapters.weights import weight_files
from clusterlora.durable import make_folder, put_folder_in_place, sync
from clusterlora.errors import BadData

_ABANDONED_SECONDS = 3600.0
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class FileAdapterStore:
    """An AdapterStore under one root: `<key>/` is a finished adapter, `.scratch/<key>/` the checkpoints of an unfinished one."""

    def __init__(self, root: Path, fetch: Callable[[str, Path], bool] | None = None) -> None:
        """Open or create the store.

        Args:
            fetch: downloads an adapter that is not on this machine, `fetch(key, empty_folder)`; returns false when it is nowhere.
        """
        self._root = root
        self._fetch = fetch
        # A command may open the store before any server or worker, whose files are their owner's alone.
        make_folder(self._root, mode=0o700)

    def path(self, key: str) -> Path | None:
        if folder := self.local(key):
            return folder
        if self._fetch is None:
            return None
        incoming = self._incoming()
        try:
            return self._admit(key, incoming) if self._fetch(key, incoming) else None
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def save(self, key: str, folder: Path) -> Path:
        """Store a copy of a PEFT folder under its key; the first copy of a key stays, unless its files are missing or truncated.

        Raises:
            BadData: the folder is not a PEFT adapter of safetensors and JSON files alone.
        """
        incoming = self._incoming()
        try:
            for file in weight_files(folder):
                shutil.copyfile(file, incoming / file.name)
            return self._admit(key, incoming)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def scratch(self, key: str) -> Path:
        folder = self._root / ".scratch" / self._folder(key).name
        make_folder(folder)
        return folder

    def drop_scratch(self, key: str) -> None:
        shutil.rmtree(self._root / ".scratch" / self._folder(key).name, ignore_errors=True)

    def local(self, key: str) -> Path | None:
        folder = self._folder(key)
        return folder if folder.is_dir() else None

    def local_keys(self) -> tuple[str, ...]:
        return tuple(sorted(entry.name for entry in self._root.iterdir() if _KEY.fullmatch(entry.name)))

    def scratch_keys(self) -> tuple[str, ...]:
        return _names(self._root / ".scratch")

    def quarantine(self, key: str) -> Path:
        quarantined = self._root / ".quarantine" / f"{self._folder(key).name}-{uuid.uuid4().hex[:8]}"
        make_folder(quarantined.parent)
        self._folder(key).rename(quarantined)
        sync(self._root)
        return quarantined

    def drop(self, key: str) -> None:
        folder = self._folder(key)
        if not folder.is_dir():
            return
        # One rename takes the whole adapter away; a folder that is deleted file by file is a damaged adapter meanwhile.
        outgoing = self._incoming()
        try:
            folder.rename(outgoing / key)
            sync(self._root)
        finally:
            shutil.rmtree(outgoing, ignore_errors=True)

    def quarantined(self) -> tuple[Path, ...]:
        return tuple(self._root / ".quarantine" / name for name in _names(self._root / ".quarantine"))

    def delete(self, key: str) -> None:
        self.drop_scratch(key)
        for quarantined in (self._root / ".quarantine").glob(f"{self._folder(key).name}-*"):
            shutil.rmtree(quarantined)
        self.drop(key)

    def delete_leftovers(self) -> None:
        for name in (".scratch", ".quarantine", ".incoming"):
            shutil.rmtree(self._root / name, ignore_errors=True)

    def half_written(self) -> tuple[Path, ...]:
        folders = (self._root / ".incoming" / name for name in _names(self._root / ".incoming"))
        return tuple(folder for folder in folders if _is_abandoned(folder))

    def _folder(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise BadData(f"adapter key {key!r} is not a content key; use the hexadecimal key under which the adapter was saved")
        return self._root / key

    def _incoming(self) -> Path:
        folder = self._root / ".incoming" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def _admit(self, key: str, incoming: Path) -> Path:
        weight_files(incoming)
        folder = self._folder(key)
        if folder.is_dir() and not _is_whole(folder):
            self.quarantine(key)
        try:
            # One rename makes the whole adapter visible; it fails when another process stored an equal copy first.
            put_folder_in_place(incoming, folder)
        except OSError:
            if not folder.is_dir():
                raise
        return folder


def _is_abandoned(folder: Path) -> bool:
    """Return whether nobody has written into a folder for so long that nobody will: a worker or a server may still be fetching into it."""
    try:
        last_written = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return False  # whoever wrote there has moved it into place
    return time.time() - last_written > _ABANDONED_SECONDS


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else ()


def _is_whole(folder: Path) -> bool:
    try:
        weight_files(folder)
    except BadData:
        return False
    return True
