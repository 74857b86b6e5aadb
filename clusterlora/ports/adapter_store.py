"""Adapter folders on this machine: training writes them, evaluation and serving read them."""

from pathlib import Path
from typing import Protocol


class AdapterStore(Protocol):
    """Adapter weights as PEFT folders, by content key. A folder under a key is always complete."""

    def path(self, key: str) -> Path | None:
        """Return a local folder of the adapter, downloading it if it is elsewhere; None when it is nowhere."""
        ...

    def save(self, key: str, folder: Path) -> Path:
        """Store a copy of a PEFT folder under its key, atomically; return the copy."""
        ...

    def scratch(self, key: str) -> Path:
        """Return this adapter's folder for checkpoints of unfinished training; it survives a crash."""
        ...

    def drop_scratch(self, key: str) -> None: ...

    def local(self, key: str) -> Path | None:
        """Return the folder of an adapter on this machine; None when it would have to be downloaded."""
        ...

    def local_keys(self) -> tuple[str, ...]:
        """Return the keys of the adapters on this machine."""
        ...

    def scratch_keys(self) -> tuple[str, ...]:
        """Return the keys that have checkpoints on this machine."""
        ...

    def quarantine(self, key: str) -> Path:
        """Move an adapter out of the store into its quarantine folder, and return the folder; nothing is deleted."""
        ...

    def drop(self, key: str) -> None:
        """Delete an adapter from this machine; nothing happens when it is not there."""
        ...

    def quarantined(self) -> tuple[Path, ...]:
        """Return the folders of quarantined adapters."""
        ...

    def half_written(self) -> tuple[Path, ...]:
        """Return the folders of copies and downloads that were interrupted: nobody has written to them for an hour."""
        ...

    def delete(self, key: str) -> None:
        """Delete an adapter on this machine: its folder, its checkpoints and its quarantined copies."""
        ...

    def delete_leftovers(self) -> None:
        """Delete what no finished adapter needs: all checkpoints, quarantined and half-written folders."""
        ...
