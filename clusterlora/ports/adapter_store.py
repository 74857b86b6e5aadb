"""Adapter folders on this machine: what training writes and whatever answers reads."""

from pathlib import Path
from typing import Protocol


class AdapterStore(Protocol):
    """Adapter weights as PEFT folders, by content key. A folder that can be seen is complete."""

    def path(self, key: str) -> Path | None:
        """Return a local folder holding the adapter, fetching it if it is elsewhere; None when nobody has it."""
        ...

    def save(self, key: str, folder: Path) -> Path:
        """Keep a copy of a PEFT folder under its key, atomically; return where it lies."""
        ...

    def scratch(self, key: str) -> Path:
        """Return this adapter's folder for checkpoints of unfinished training; it survives a crash."""
        ...

    def drop_scratch(self, key: str) -> None: ...

    def local(self, key: str) -> Path | None:
        """Return the folder of an adapter that is here, without fetching it."""
        ...

    def local_keys(self) -> tuple[str, ...]:
        """Return the keys of the adapters that are here."""
        ...

    def scratch_keys(self) -> tuple[str, ...]:
        """Return the keys that have checkpoints here."""
        ...

    def quarantine(self, key: str) -> Path:
        """Move an adapter out of the store into its quarantine folder, and return the folder; nothing is deleted."""
        ...

    def half_written(self) -> tuple[Path, ...]:
        """Return the folders of copies and downloads that never ended, or are under way."""
        ...
