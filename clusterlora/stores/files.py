"""Adapter weights as PEFT folders on a disk, by content key. What can be seen is complete, on the disk, and free of pickles."""

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from clusterlora.durable import make_folder, put_folder_in_place, sync
from clusterlora.errors import BadData
from clusterlora.models.weights import file_sha256

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REQUIRED = ("adapter_config.json", "adapter_model.safetensors")


class FileAdapterStore:
    """An AdapterStore under one root: `<key>/` is a finished adapter, `.scratch/<key>/` the checkpoints of an unfinished one."""

    def __init__(self, root: Path, fetch: Callable[[str, Path], bool] | None = None) -> None:
        """Open or create the store.

        Args:
            fetch: brings an adapter that is not here, `fetch(key, empty_folder)`; false when nobody has it.
        """
        self._root = root
        self._fetch = fetch
        make_folder(self._root)

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
        """Keep a copy of a PEFT folder under its key; the first copy of a key stays, unless files of it are missing or cut.

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

    def half_written(self) -> tuple[Path, ...]:
        return tuple(self._root / ".incoming" / name for name in _names(self._root / ".incoming"))

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
            # One rename makes the whole adapter visible; it fails when somebody else's equal copy came first.
            put_folder_in_place(incoming, folder)
        except OSError:
            if not folder.is_dir():
                raise
        return folder


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else ()


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors and JSON files of a PEFT folder. The model card that PEFT writes beside them is left out.

    Raises:
        BadData: a file of another kind (pickled weights above all, under whatever name), a subfolder, a link, or a missing file.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    if missing := [name for name in _REQUIRED if folder / name not in entries]:
        raise BadData(f"{folder} is not a PEFT adapter: {' and '.join(missing)} missing; save it with save_pretrained")
    kept = [e for e in entries if e.name != "README.md"]
    if refused := [e.name for e in kept if e.suffix not in {".safetensors", ".json"} or e.is_symlink() or not e.is_file()]:
        raise BadData(f"{folder} holds {', '.join(refused)}; only .safetensors and .json files are kept, pickled weights are never loaded")
    if broken := [e.name for e in kept if not (_is_safetensors(e) if e.suffix == ".safetensors" else _is_json(e))]:
        raise BadData(f"{folder} holds {', '.join(broken)}, cut or not what its name says; save it with save_pretrained")
    return tuple(kept)


def _is_whole(folder: Path) -> bool:
    try:
        weight_files(folder)
    except BadData:
        return False
    return True


def _is_safetensors(file: Path) -> bool:
    """Return whether a file begins with a JSON object that lists tensors and is long enough for them: a pickle, or half a file, is not."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        n_header = int.from_bytes(opened.read(8), "little")
        if n_header > size - 8:
            return False
        header = opened.read(n_header)
    try:
        ends = [int(entry["data_offsets"][1]) for name, entry in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False
    return 8 + n_header + max(ends, default=0) <= size


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except ValueError:
        return False
    return True


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of what `sha256sum` says of an adapter's files in name order: its weights and how they are to be applied."""
    lines = [f"{file_sha256(file)}  {file.name}\n" for file in weight_files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def refuse_other_weights(key: str, expected_sha256: str | None, folder: Path) -> None:
    """Check that a folder holds the weights that were recorded under a key; without a recorded digest anything is taken.

    Raises:
        BadData: it holds others, or no adapter at all.
    """
    found = weights_sha256(folder)
    if expected_sha256 not in (None, found):
        raise BadData(
            f"adapter {key} has SHA-256 {found[:16]}..., recorded is {expected_sha256[:16]}...; "
            "run `clusterlora study verify --repair` where it was trained"
        )
