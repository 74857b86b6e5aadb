"""Adapter weights as PEFT folders on a disk, by content key. What can be seen is complete and free of pickles."""

import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from clusterlora.errors import BadData

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
        self._root.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path | None:
        folder = self._folder(key)
        if folder.is_dir():
            return folder
        if self._fetch is None:
            return None
        incoming = self._incoming()
        try:
            return self._admit(key, incoming) if self._fetch(key, incoming) else None
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def save(self, key: str, folder: Path) -> Path:
        """Keep a copy of a PEFT folder under its key; the first copy of a key stays.

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
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop_scratch(self, key: str) -> None:
        shutil.rmtree(self._root / ".scratch" / self._folder(key).name, ignore_errors=True)

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
        try:
            # One rename makes the whole adapter visible; it fails when somebody else's equal copy came first.
            incoming.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        return folder


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors and JSON files of a PEFT folder. The model card that PEFT writes beside them is left out.

    Raises:
        BadData: a file of another kind (pickled weights above all), a subfolder, a link, or a missing required file.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    if missing := [name for name in _REQUIRED if folder / name not in entries]:
        raise BadData(f"{folder} is not a PEFT adapter: {' and '.join(missing)} missing; save it with save_pretrained")
    kept = [e for e in entries if e.name != "README.md"]
    if refused := [e.name for e in kept if e.suffix not in {".safetensors", ".json"} or e.is_symlink() or not e.is_file()]:
        raise BadData(f"{folder} holds {', '.join(refused)}; only .safetensors and .json files are kept, pickled weights are never loaded")
    return tuple(kept)
