"""Adapters by key wherever their files are, in PEFT folders or in shards: what a router answers with, and what is registered."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clusterlora.adapters.shards import SUFFIX, in_shards, open_shard, write_shard
from clusterlora.adapters.stored import bring, stored_folder
from clusterlora.adapters.weights import refuse_other_weights, weight_files, weights_sha256
from clusterlora.errors import BadData
from clusterlora.ports.adapter_store import AdapterFiles
from clusterlora.ports.stores import Stores

if TYPE_CHECKING:
    from clusterlora.engine.stacked import Weights


class HeldAdapters:
    """Adapters by content key. Nothing is in memory until it is asked for."""

    def __init__(self, folders: Mapping[str, Path] | None = None, shards: Mapping[str, Path] | None = None) -> None:
        """Remember where adapters are.

        Args:
            folders: PEFT folders by key.
            shards: the file of the shard that holds an adapter, by key.
        """
        self._folders, self._shards = dict(folders or {}), dict(shards or {})
        self._split: Path | None = None

    @classmethod
    def of_model(cls, folder: Path) -> "HeldAdapters":
        """Return the adapters among the files of a registered model, as `write` left them there.

        Raises:
            BadData: a shard is damaged.
        """
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        shards = {key: file for file in entries if file.suffix == SUFFIX for key in open_shard(file).keys}
        return cls({entry.name: entry for entry in entries if entry.is_dir()}, shards)

    @classmethod
    def of_stores(cls, keys: Collection[str], stores: Stores) -> "HeldAdapters":
        """Return trained adapters as they were recorded, brought here if they are elsewhere. Raises BadData: one is nowhere."""
        folders, shards = dict[str, Path](), dict[str, Path]()
        for key in sorted(keys):
            bring(stores, key)
            if (shard := stores.adapters.shard(key)) is not None:
                shards[key] = shard
            else:
                folders[key] = stored_folder(stores, key)
        return cls(folders, shards)

    @property
    def keys(self) -> frozenset[str]:
        """The keys of all."""
        return frozenset(self._folders.keys() | self._shards.keys())

    def sha256(self, key: str) -> str:
        """Return the digest of an adapter, see `weights_sha256`. Raises BadData: it is damaged."""
        return weights_sha256(self._folders[key]) if key in self._folders else self._files(key).sha256

    def weights(self, key: str, sha256: str | None = None) -> "Weights":
        """Return what an adapter adds to its base.

        Raises:
            BadData: it is damaged, or its digest is not `sha256`, where that is known.
        """
        from safetensors.torch import load

        from clusterlora.engine.kinds import read_weights, weights_of

        if key in self._folders:
            refuse_other_weights(key, sha256, self.sha256(key) if sha256 else "")
            return read_weights(self._folders[key])
        files = self._files(key)
        refuse_other_weights(key, sha256, files.sha256 if sha256 else "")
        weights = weights_of(json.loads(files.config), load(files.weights), name=key)
        return read_weights(self.folder(key)) if weights is None else weights

    def folder(self, key: str) -> Path:
        """Return an adapter's PEFT folder; that of one in a shard is there as long as this is. Raises BadData: it is damaged."""
        if key in self._folders:
            return self._folders[key]
        if self._split is None:
            self._split = Path(tempfile.mkdtemp(prefix="clusterlora-adapters-"))
            weakref.finalize(self, shutil.rmtree, self._split, ignore_errors=True)
        folder = self._split / key
        if not folder.is_dir():
            folder.mkdir()
            self._files(key).write(folder)
        return folder

    def write(self, target: Path) -> None:
        """Copy all into a folder: a PEFT folder by the name of its key for each that has one, and shards of the others.

        Raises:
            BadData: one is damaged.
        """
        target.mkdir(parents=True)
        for key, folder in self._folders.items():
            (target / key).mkdir()
            for file in weight_files(folder):
                shutil.copyfile(file, target / key / file.name)
        n_written = 0
        for file in sorted(set(self._shards.values())):
            own = {key for key, held_in in self._shards.items() if held_in == file}
            for group in in_shards({key: self._files(key) for key in sorted(own)}):
                n_written += 1
                write_shard(target / f"shard-{n_written:05d}{SUFFIX}", group)

    def _files(self, key: str) -> AdapterFiles:
        if key not in self._shards:
            raise BadData(f"adapter {key} is not among the model's files")
        try:
            return open_shard(self._shards[key]).read(key)
        except FileNotFoundError as problem:
            raise BadData(f"the file with adapter {key}, {self._shards[key]}, was removed meanwhile; load the model again") from problem
