"""Adapters on disk, by content key: PEFT folders, and shards of many of one form; all of it whole, synced and free of pickles."""

import fcntl
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Generator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path

from clusterlora.adapters.shards import SUFFIX, Shard, in_shards, is_key, open_shard, shard_in, write_shard
from clusterlora.adapters.weights import adapter_files, weight_files, weights_sha256
from clusterlora.durable import make_folder, put_folder_in_place, put_in_place, sync
from clusterlora.errors import BadData
from clusterlora.ports.adapter_store import AdapterFiles

_ABANDONED_SECONDS = 3600.0
_SHARDS, _SPLIT, _SCRATCH, _QUARANTINE, _INCOMING = ".shards", ".split", ".scratch", ".quarantine", ".incoming"


class FileAdapterStore:
    """An AdapterStore under one root.

    `<key>/` is a finished adapter and `.shards/<any>.safetensors` many of them, `.split/<key>/` the folder of one of these that somebody
    asked for, `.scratch/<key>/` the checkpoints of an unfinished one. A shard never changes: it is replaced by another one.
    """

    def __init__(self, root: Path, fetch: Callable[[str, Path], bool] | None = None) -> None:
        """Open or create the store.

        Args:
            fetch: downloads an adapter that is not on this machine into an empty folder, `fetch(key, folder)`: its files, or a shard that
                has it; returns false when it is nowhere.
        """
        self._root = root
        self._fetch = fetch
        self._shard_by_key: dict[str, Path] = {}
        self._known_shards: set[Path] = set()
        # A command may open the store before any server or worker, whose files are their owner's alone.
        make_folder(self._root, mode=0o700)

    def bring(self, key: str) -> bool:
        if not self.holds(key):
            self._download(key)
        return self.holds(key)

    def path(self, key: str) -> Path | None:
        if not self.bring(key):
            return None
        if folder := self._local(key):
            return folder
        files = self.from_shard(key)
        # A shard that cannot be read is set aside, and its adapters are elsewhere or nowhere.
        return self.path(key) if files is None else self._split_off(key, files)

    def from_shard(self, key: str) -> AdapterFiles | None:
        while self._local(key) is None and (shard := self._shard(key)) is not None:
            try:
                return shard.read(key)
            except FileNotFoundError:
                self._look_for_shards()
            except BadData:
                self._quarantine_shard(shard.file)
        return None

    def shard(self, key: str) -> Path | None:
        shard = self._shard(key)
        return shard.file if shard else None

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

    def save_together(self, folders: Mapping[str, Path]) -> Mapping[Path, tuple[str, ...]]:
        """Store the adapters of PEFT folders in shards of nobody else; the first copy of a key stays.

        One that is in a shard with others, stored by a process that ended before it recorded it, leaves them: a shard is uploaded whole,
        and they may be of another study.

        Raises:
            BadData: a folder is not a PEFT adapter of one safetensors and one JSON file; nothing is stored.
        """
        new: dict[str, AdapterFiles] = {}
        moving: set[str] = set()
        for key, folder in folders.items():
            files = adapter_files(folder)
            if files is None:
                raise BadData(f"{folder} holds more than an adapter's configuration and weights; save it by itself")
            shard = self._shard(key)
            if shard is not None and not folders.keys() >= set(shard.keys):
                new[key] = self.from_shard(key) or files
                moving.add(key)
            elif not self.holds(key):
                new[key] = files
        with self._one_at_a_time():
            written = [self._write_shard(group) for group in in_shards(new)]
            if moving:
                self._take_out(moving, but=written)
        shards: dict[Path, tuple[str, ...]] = {}
        for key in folders:
            if (shard := self._shard(key)) is not None:
                shards[shard.file] = (*shards.get(shard.file, ()), key)
        return shards

    def scratch(self, key: str) -> Path:
        folder = self._root / _SCRATCH / self._folder(key).name
        make_folder(folder)
        return folder

    def drop_scratch(self, key: str) -> None:
        shutil.rmtree(self._root / _SCRATCH / self._folder(key).name, ignore_errors=True)

    def holds(self, key: str) -> bool:
        return self._local(key) is not None or self._shard(key) is not None

    def sha256(self, key: str) -> str:
        if folder := self._local(key):
            return weights_sha256(folder)
        shard = self._shard(key)
        if shard is None:
            raise BadData(f"adapter {key} is not on this machine")
        try:
            return shard.read(key).sha256
        except FileNotFoundError:
            self._look_for_shards()
            return self.sha256(key)

    def n_bytes(self, key: str) -> int:
        if folder := self._local(key):
            return sum(file.stat().st_size for file in folder.iterdir())
        shard = self._shard(key)
        return sum(size for _, size in shard.rows) if shard else 0

    def local_keys(self) -> tuple[str, ...]:
        self._look_for_shards()
        folders = {entry.name for entry in self._root.iterdir() if is_key(entry.name)}
        return tuple(sorted(folders | self._shard_by_key.keys()))

    def scratch_keys(self) -> tuple[str, ...]:
        return _names(self._root / _SCRATCH)

    def quarantine(self, key: str) -> Path:
        quarantined = self._root / _QUARANTINE / f"{self._folder(key).name}-{uuid.uuid4().hex[:8]}"
        if self._local(key) is None and (shard := self._shard(key)) is not None:
            try:
                files = shard.read(key)
            except BadData:
                return self._quarantine_shard(shard.file)
            make_folder(quarantined)
            files.write(quarantined)
            self._leave_shards([key])
            return quarantined
        make_folder(quarantined.parent)
        self._folder(key).rename(quarantined)
        sync(self._root)
        return quarantined

    def drop(self, keys: Collection[str]) -> None:
        self._leave_shards(keys)
        for folder in filter(Path.is_dir, map(self._folder, keys)):
            # One rename takes the whole adapter away; a folder that is deleted file by file is a damaged adapter meanwhile.
            outgoing = self._incoming()
            try:
                folder.rename(outgoing / folder.name)
                sync(self._root)
            finally:
                shutil.rmtree(outgoing, ignore_errors=True)

    def quarantined(self) -> tuple[Path, ...]:
        return tuple(self._root / _QUARANTINE / name for name in _names(self._root / _QUARANTINE))

    def split(self) -> tuple[Path, ...]:
        return tuple(self._root / _SPLIT / name for name in _names(self._root / _SPLIT))

    def delete(self, key: str) -> None:
        self.drop_scratch(key)
        for quarantined in (self._root / _QUARANTINE).glob(f"{self._folder(key).name}-*"):
            shutil.rmtree(quarantined)
        self.drop([key])

    def delete_leftovers(self) -> None:
        for name in (_SCRATCH, _QUARANTINE, _INCOMING, _SPLIT):
            shutil.rmtree(self._root / name, ignore_errors=True)

    def half_written(self) -> tuple[Path, ...]:
        folders = (self._root / _INCOMING / name for name in _names(self._root / _INCOMING))
        return tuple(folder for folder in folders if _is_abandoned(folder))

    def _folder(self, key: str) -> Path:
        if not is_key(key):
            raise BadData(f"adapter key {key!r} is not a content key; use the hexadecimal key under which the adapter was saved")
        return self._root / key

    def _local(self, key: str) -> Path | None:
        folder = self._folder(key)
        return folder if folder.is_dir() else None

    def _incoming(self) -> Path:
        folder = self._root / _INCOMING / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def _download(self, key: str) -> None:
        """Download an adapter, or a shard that has it, if it is anywhere."""
        if self._fetch is None:
            return
        incoming = self._incoming()
        try:
            if self._fetch(key, incoming):
                if shard := shard_in(incoming):
                    with self._one_at_a_time():
                        file = self._put_shard(shard)
                        # What was fetched is as it was recorded; copies beside it may be damaged, and would be fetched one by one.
                        self._take_out(set(open_shard(file).keys), but=[file])
                else:
                    self._admit(key, incoming)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

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

    def _split_off(self, key: str, files: AdapterFiles) -> Path:
        """Return the PEFT folder of an adapter in a shard, made the first time that somebody asks for it."""
        folder = self._root / _SPLIT / key
        if not folder.is_dir() or not _is_whole(folder) or weights_sha256(folder) != files.sha256:
            shutil.rmtree(folder, ignore_errors=True)
            incoming = self._incoming()
            try:
                files.write(incoming)
                make_folder(folder.parent)
                put_folder_in_place(incoming, folder)
            except OSError:
                if not folder.is_dir():
                    raise
            finally:
                shutil.rmtree(incoming, ignore_errors=True)
        return folder

    def _write_shard(self, files_by_key: Mapping[str, AdapterFiles]) -> Path:
        incoming = self._incoming()
        try:
            write_shard(incoming / f"shard{SUFFIX}", files_by_key)
            return self._put_shard(incoming / f"shard{SUFFIX}")
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def _put_shard(self, written: Path) -> Path:
        file = self._root / _SHARDS / f"{uuid.uuid4().hex}{SUFFIX}"
        make_folder(file.parent)
        put_in_place(written, file)
        self._know(file)
        return file

    def _shard(self, key: str) -> Shard | None:
        """Return the shard on this machine that holds an adapter."""
        if self._folder(key).name not in self._shard_by_key:
            self._look_for_shards()
        while (file := self._shard_by_key.get(key)) is not None:
            try:
                return open_shard(file)
            except FileNotFoundError:
                # Another process put a shard without some of its adapters in its place.
                self._look_for_shards()
            except BadData:
                self._quarantine_shard(file)
        return None

    def _look_for_shards(self) -> None:
        is_settled = False
        # A file that was listed and is gone was replaced meanwhile, by one that was not listed.
        while not is_settled:
            there = set((self._root / _SHARDS).glob(f"*{SUFFIX}"))
            for file in self._known_shards - there:
                self._forget_shard(file)
            is_settled = all(self._know(file) for file in sorted(there - self._known_shards))

    def _know(self, file: Path) -> bool:
        """Note what a shard holds, if it is one; return whether it was there."""
        try:
            keys = open_shard(file).keys
        except FileNotFoundError:
            return False
        except BadData:
            self._quarantine_shard(file)
            return True
        self._known_shards.add(file)
        for key in keys:
            self._shard_by_key.setdefault(key, file)
        return True

    def _forget_shard(self, file: Path) -> None:
        others = sorted(self._known_shards - {file})
        # Two processes may have stored the same adapter, so that another shard has some of these, too.
        self._known_shards, self._shard_by_key = set(), {}
        for other in others:
            self._know(other)

    def _quarantine_shard(self, file: Path) -> Path:
        """Move a shard that cannot be read into quarantine: its adapters are fetched, or trained, again."""
        quarantined = self._root / _QUARANTINE / f"shard-{uuid.uuid4().hex[:8]}"
        make_folder(quarantined)
        self._forget_shard(file)
        try:
            file.rename(quarantined / file.name)
        except FileNotFoundError:
            quarantined.rmdir()  # somebody else saw it, too
        sync(file.parent)
        return quarantined

    def _leave_shards(self, keys: Collection[str]) -> None:
        """Take adapters out of the shards that hold them: another file holds the others of each."""
        with self._one_at_a_time():
            self._take_out(set(keys))
        for key in keys:
            shutil.rmtree(self._root / _SPLIT / key, ignore_errors=True)

    def _take_out(self, leaving: Set[str], but: Collection[Path] = ()) -> None:
        self._look_for_shards()
        for file in sorted(self._known_shards - {*but}):
            try:
                shard = open_shard(file)
                if not leaving.isdisjoint(shard.keys):
                    self._replace_shard(shard, {key: files for key, files in shard.read_all().items() if key not in leaving})
            except BadData:
                self._quarantine_shard(file)

    def _replace_shard(self, shard: Shard, others: Mapping[str, AdapterFiles]) -> None:
        if others:
            self._write_shard(others)
        shard.file.unlink()
        sync(shard.file.parent)
        self._forget_shard(shard.file)

    @contextmanager
    def _one_at_a_time(self) -> Generator[None]:
        make_folder(self._root / _SHARDS)
        with (self._root / _SHARDS / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


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
