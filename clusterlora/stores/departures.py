"""Backups that were made of an installation, who is in them, and who left: what a restored backup brings back is removed again.

Files in the folder of the results: `.backups/` names every backup of the installation and who is in it, `.departed/` everybody who left.
Both are kept in the servers' folder, too, which no restore overwrites; they travel in later backups, and name people by keyed digests.
"""

import hashlib
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from clusterlora.durable import write_durably
from clusterlora.errors import BadSettings
from clusterlora.private_files import make_folder, make_inner_folder
from clusterlora.pseudonyms import KEY_FILE
from clusterlora.stores.json_codec import from_json, to_json

BACKUPS = ".backups"
DEPARTED = ".departed"
BACKUPS_OUTSIDE, DEPARTED_OUTSIDE = "backups", "departed"
"""The same in the folder of the servers."""
TO_FORGET = ".forget-again.json"
"""In the folder of the results from when a backup is put there until everybody who left since it was made is forgotten again."""
MANIFEST = "manifest.json"
"""The last entry of a backup."""


@dataclass(frozen=True, slots=True)
class KnownBackup:
    """A backup: its file when it was made, the SHA-256 of its manifest, the moment, and keyed digests of the people of each study.

    `installation` says whose key it is.
    """

    file: str
    manifest_sha256: str
    made: str
    people: tuple[tuple[str, tuple[str, ...]], ...]
    installation: str

    def has(self, person: str, studies: Collection[str]) -> bool:
        """Return whether a person is in one of these studies in it; without studies, in any."""
        return any(person in people for study, people in self.people if not studies or study in studies)

    @property
    def is_there(self) -> bool:
        """Whether the file still is this backup."""
        return manifest_sha256(Path(self.file)) == self.manifest_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """Somebody who left: the keyed digest of the id, the studies that were asked for (none: all), the moment, and whose key it is."""

    person: str
    scope: tuple[str, ...]
    at: str
    installation: str


@dataclass(frozen=True, slots=True)
class Departures:
    """What is to be forgotten again before anything else is done."""

    people: tuple[Departure, ...]


def manifest_sha256(file: Path) -> str | None:
    """Return the SHA-256 of a backup's manifest, which has those of all its entries; None where the file is no backup."""
    try:
        with tarfile.open(file, mode="r:") as archive:
            last = archive.getmembers()[-1]
            opened = archive.extractfile(last) if last.name == MANIFEST else None
            return hashlib.sha256(opened.read()).hexdigest() if opened else None
    except (OSError, tarfile.TarError, IndexError, EOFError):
        return None


def note_backup(folder: Path, backup: KnownBackup) -> None:
    """Remember a backup in a folder."""
    _write(folder, f"{backup.manifest_sha256[:16]}.json", to_json(backup).encode())


def known_backups(folder: Path) -> tuple[KnownBackup, ...]:
    """Return every backup that is remembered in a folder, oldest first."""
    found = [from_json(KnownBackup, file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    return tuple(sorted(found, key=lambda one: (one.made, one.file)))


def drop_backup(home: Path, backup: KnownBackup) -> None:
    """Delete a backup's file and what is remembered of it."""
    Path(backup.file).unlink(missing_ok=True)
    (home / BACKUPS / f"{backup.manifest_sha256[:16]}.json").unlink(missing_ok=True)


def installation(home: Path) -> str | None:
    """Return what tells an installation from others: the SHA-256 of its key. None where it has no key yet."""
    key = home / KEY_FILE
    return hashlib.sha256(key.read_bytes()).hexdigest() if key.is_file() else None


def keep_key(home: Path, folder: Path) -> None:
    """Keep an installation's key in a folder outside of its results: backups of earlier versions have none."""
    key = home / KEY_FILE
    if key.is_file():
        _write(folder, f"{installation(home)}.key", key.read_bytes())


def give_key(home: Path, folder: Path) -> None:
    """Give the key that is kept in a folder to results that have none.

    Raises:
        BadSettings: those of several installations are kept there, and nobody can say whose results these are.
    """
    keys = sorted(folder.glob("*.key"))
    if (home / KEY_FILE).is_file() or not keys:
        return
    if len(keys) > 1:
        raise BadSettings(
            f"this backup is of an earlier version, and people left {len(keys)} installations by {folder}; leave there the key (*.key) of "
            "the one that it is of"
        )
    write_durably(home / KEY_FILE, keys[0].read_bytes(), mode=0o600)


def note_departure(folder: Path, departure: Departure) -> None:
    """Remember in a folder that somebody left."""
    name = f"{departure.person[:32]}-{hashlib.sha256(to_json(departure).encode()).hexdigest()[:16]}.json"
    _write(folder, name, to_json(departure).encode())


def departures(folder: Path) -> tuple[Departure, ...]:
    """Return who left, as remembered in a folder, the earliest first."""
    found = [from_json(Departure, file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    return tuple(sorted(found, key=lambda one: (one.at, one.person, one.scope)))


def left_since(folder: Path, home: Path, made: str) -> tuple[Departure, ...]:
    """Return who left an installation after a backup of it was made, as remembered in a folder.

    People of other installations, whose ids may be the same, have other keys.
    """
    own = installation(home)
    return tuple(one for one in departures(folder) if one.installation == own and one.at >= made)


def refuse_unforgotten(home: Path) -> None:
    """Raise BadSettings where a restored backup still has people who left after it was made."""
    if (home / TO_FORGET).is_file():
        raise BadSettings(
            f"{home} was restored from a backup that has people who left since; forget them again first: clusterlora persona forget "
            "--restored"
        )


def _write(folder: Path, name: str, content: bytes) -> None:
    # It may be the first thing in the servers' folder. One that is there is for them to close, or to refuse.
    if not folder.parent.is_dir():
        make_folder(folder.parent)
    make_inner_folder(folder)
    write_durably(folder / name, content, mode=0o600)
