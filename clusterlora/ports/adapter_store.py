"""Adapters on this machine: training writes them, evaluation and serving read them."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of a PEFT folder."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """What is in the two files of a PEFT folder."""

    config: bytes
    weights: bytes

    @property
    def sha256(self) -> str:
        """The digest of the folder, see `adapters.weights.weights_sha256`."""
        return combined_sha256({CONFIG: hashlib.sha256(self.config).hexdigest(), WEIGHTS: hashlib.sha256(self.weights).hexdigest()})

    def write(self, folder: Path) -> None:
        """Write them into an existing folder."""
        (folder / CONFIG).write_bytes(self.config)
        (folder / WEIGHTS).write_bytes(self.weights)


def combined_sha256(sha256_by_name: Mapping[str, str]) -> str:
    """Return the SHA-256 of what `sha256sum` says of files in name order."""
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sha256_by_name.items())).encode()).hexdigest()


class AdapterSet(Protocol):
    """Adapters that are registered together."""

    @property
    def keys(self) -> frozenset[str]:
        """Their keys."""
        ...

    def write(self, target: Path) -> None:
        """Copy them into a new folder: a PEFT folder for each that has one, named by its key, and shards of the others."""
        ...


class AdapterStore(Protocol):
    """Adapters by content key, each as a PEFT folder or, where there are many of a form, as rows of a shard; what is there is whole."""

    def path(self, key: str) -> Path | None:
        """Return a local PEFT folder of the adapter, downloaded if it is elsewhere, split off its shard if it is in one; None: nowhere."""
        ...

    def bring(self, key: str) -> bool:
        """Return whether an adapter is on this machine, downloaded if it was elsewhere."""
        ...

    def from_shard(self, key: str) -> AdapterFiles | None:
        """Return an adapter that a shard on this machine holds; None where it has a folder, is not here, or cannot be read."""
        ...

    def shard(self, key: str) -> Path | None:
        """Return the file of the shard on this machine that holds an adapter; None where none does."""
        ...

    def save(self, key: str, folder: Path) -> Path:
        """Store a copy of a PEFT folder under its key, atomically; return the copy."""
        ...

    def save_together(self, folders: Mapping[str, Path]) -> Mapping[Path, tuple[str, ...]]:
        """Store the adapters of PEFT folders in shards; return the keys in the file of each shard that has one of them."""
        ...

    def scratch(self, key: str) -> Path:
        """Return this adapter's folder for checkpoints of unfinished training; it survives a crash."""
        ...

    def drop_scratch(self, key: str) -> None: ...

    def holds(self, key: str) -> bool:
        """Return whether an adapter is on this machine; else it would have to be downloaded."""
        ...

    def sha256(self, key: str) -> str:
        """Return the digest of an adapter on this machine, see `adapters.weights.weights_sha256`.

        Raises:
            BadData: it is damaged, or not here.
        """
        ...

    def n_bytes(self, key: str) -> int:
        """Return the bytes that an adapter takes on this machine."""
        ...

    def local_keys(self) -> tuple[str, ...]:
        """Return the keys of the adapters on this machine."""
        ...

    def scratch_keys(self) -> tuple[str, ...]:
        """Return the keys that have checkpoints on this machine."""
        ...

    def quarantine(self, key: str) -> Path:
        """Move an adapter out of the store into a quarantine folder, and return the folder; nothing is deleted.

        Raises:
            FileNotFoundError: it is not here.
        """
        ...

    def drop(self, keys: Collection[str]) -> None:
        """Delete adapters from this machine; nothing happens where they are not there."""
        ...

    def quarantined(self) -> tuple[Path, ...]:
        """Return the folders of quarantined adapters."""
        ...

    def split(self) -> tuple[Path, ...]:
        """Return the folders that `path` made of adapters in shards."""
        ...

    def half_written(self) -> tuple[Path, ...]:
        """Return the folders of copies and downloads that were interrupted: nobody has written to them for an hour."""
        ...

    def delete(self, key: str) -> None:
        """Delete an adapter on this machine: its folder or its row of a shard, its checkpoints and its quarantined copies."""
        ...

    def delete_leftovers(self) -> None:
        """Delete what no finished adapter needs: all checkpoints, quarantined and half-written folders, and folders split off shards."""
        ...
