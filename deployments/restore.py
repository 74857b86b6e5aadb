"""Restoration of a backup on an empty installation: everything is checked before anything is put in place, and an error takes it back.

The file may come from anywhere: members are plain files under names that `backup.py` writes, and take the bytes that the manifest says.
"""

import errno
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from clusterlora import private_files
from clusterlora.durable import sync, sync_all, write_durably
from clusterlora.errors import BadData, BadSettings, printable
from clusterlora.stages.forgotten import UNFINISHED
from clusterlora.stores.database_copy import (
    files_of_sqlite,
    refuse_other_kind,
    refuse_unreadable_dump,
    refuse_used_database,
    refuse_used_sqlite,
    restore_database,
)
from clusterlora.stores.departures import (
    BACKUPS,
    BACKUPS_OUTSIDE,
    DEPARTED,
    DEPARTED_OUTSIDE,
    MANIFEST,
    TO_FORGET,
    Departures,
    KnownBackup,
    departures,
    give_key,
    installation,
    known_backups,
    left_since,
    manifest_sha256,
    note_backup,
    note_departure,
)
from clusterlora.stores.json_codec import from_json, to_json
from deployments import services_state
from deployments.backup import (
    API_KEYS,
    ARTIFACTS,
    FORMAT,
    MLFLOW_DATABASE,
    PASSWORDS,
    PREFECT_DATABASE,
    READABLE,
    RESTORING,
    RESULTS,
    SECRETS,
    STUDY_DATABASE,
    Manifest,
    Place,
    note_backup_of,
    people_of,
    refuse_nested,
)

_BLOCK = 1 << 20
_NOT_WHOLE = (tarfile.TarError, OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
"""What reading an archive or a manifest that is none raises."""


def restore(place: Place, file: Path) -> Manifest:
    """Put a backup where nothing is yet, after every digest was checked; return what it says of itself.

    After an error nothing of it is left. Where the process is killed, its folders `.restoring-*` are, and a later restore names them.

    Raises:
        BadSettings: there are studies, services or a study database there already, or the study database is of another kind.
        BadData: the file is no whole backup, or an entry differs from its digest.
    """
    if not file.is_file():
        raise BadData(f"there is no backup {file}; write one with: clusterlora backup FILE")
    _refuse_used(place)
    with _opened(file) as (archive, members, manifest):
        refuse_other_kind(place.database, manifest.database)
        _refuse_overwriting(place, manifest)
        for folder in (place.results, place.services):
            private_files.make_home(folder)
        _refuse_full(place, manifest)
        with (
            TemporaryDirectory(dir=place.results, prefix=RESTORING) as results,
            TemporaryDirectory(dir=place.services, prefix=RESTORING) as services,
        ):
            folders = {RESULTS: Path(results)}
            for member in members:
                root = folders.get(PurePosixPath(member.name).parts[0], Path(services))
                _unpack(archive, member, root / member.name, file, manifest)
            refuse_unreadable_dump(place.database, Path(services) / STUDY_DATABASE)
            _note_departures(place, Path(results) / RESULTS, file, manifest)
            _put_in_place(place, Path(results), Path(services))
    for one in departures(place.results / DEPARTED):
        note_departure(place.services / DEPARTED_OUTSIDE, one)
    people = people_of(place)
    if (sha256 := manifest_sha256(file)) is not None:
        note_backup_of(place, KnownBackup(str(file.resolve()), sha256, manifest.created, people, str(installation(place.results))))
    _settle(place, {one for _, digests in people for one in digests})
    return manifest


def _note_departures(place: Place, unpacked: Path, file: Path, manifest: Manifest) -> None:
    """Remember who left since the backup was made, and that they are to be forgotten before it is used."""
    try:
        departures(unpacked / DEPARTED)
        known_backups(unpacked / BACKUPS)
    except _NOT_WHOLE as problem:
        raise BadData(f"{file}: who left is not told in it as a backup does ({problem}); use another backup") from problem
    give_key(unpacked, place.services / DEPARTED_OUTSIDE)
    since = left_since(place.services / DEPARTED_OUTSIDE, unpacked, manifest.created)
    for one in since:
        note_departure(unpacked / DEPARTED, one)
    for backup in known_backups(place.services / BACKUPS_OUTSIDE):
        if backup.installation == installation(unpacked):
            note_backup(unpacked / BACKUPS, backup)
    # What was under way then is finished first.
    if since or any((unpacked / UNFINISHED).glob("*.json")):
        write_durably(unpacked / TO_FORGET, to_json(Departures(since)).encode(), mode=0o600)


def _settle(place: Place, people: Collection[str]) -> None:
    """Let a backup be used at once that has nobody of those who left, by digests of its people, and no removal under way."""
    pending = place.results / TO_FORGET
    if pending.is_file() and not any((place.results / UNFINISHED).glob("*.json")):
        left = from_json(Departures, pending.read_text(encoding="utf-8")).people
        if not any(one.person in people for one in left):
            pending.unlink()


def _refuse_used(place: Place) -> None:
    refuse_nested(place)
    refuse_used_database(place.database)
    for folder in (place.results, place.services):
        if cut := next(folder.glob(f"{RESTORING}*"), None):
            raise BadSettings(
                f"{cut} is of a restore that was cut off, or still runs; if none runs, empty {place.results}, "
                f"{place.services / 'mlflow'} and {place.services / 'prefect'}, remove {place.services}/{RESTORING}*, and restore again"
            )
    if services_state.load(place.services).running():
        raise BadSettings(f"the servers of {place.services} run; stop them first: clusterlora down")
    own = files_of_sqlite(place.database)
    for folder, variable in ((place.results, "CLUSTERLORA_HOME"), (place.services / "mlflow", "CLUSTERLORA_STACK_HOME")):
        if folder.is_dir() and any(entry.resolve() not in own for entry in folder.iterdir()):
            raise BadSettings(f"{folder} is not empty; restore into an empty installation, set {variable} to another folder")
    refuse_used_sqlite(place.services / "prefect" / "prefect.db", f"the Prefect database of {place.services}")


@contextmanager
def _opened(file: Path) -> Generator[tuple[tarfile.TarFile, list[tarfile.TarInfo], Manifest]]:
    """Yield the archive, its members without the manifest, and the manifest, which agrees with their names and sizes."""
    with file.open("rb") as raw:
        try:
            # Without compression: what is unpacked is no larger than the file.
            archive = tarfile.open(fileobj=raw, mode="r:")  # noqa: SIM115  (it holds nothing but `raw`)
            *members, last = archive.getmembers()
            if last.name != MANIFEST or not last.isreg():
                raise ValueError("its last entry is no manifest")
            manifest = _manifest(file, json.loads(_content(archive, last).read()))
        except BadData:
            raise
        except _NOT_WHOLE as problem:
            raise BadData(f"{file} is no whole backup ({problem}); use another one, or unpack it first if it was compressed") from problem
        _refuse_odd_members(file, members, manifest)
        yield archive, members, manifest


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    opened = archive.extractfile(member)
    assert opened is not None, member.name
    return opened


def _manifest(file: Path, entries: Any) -> Manifest:
    if entries["format"] not in READABLE:
        written = printable(str(entries["format"]))
        raise BadData(f"{file} is a backup of format {written}, this clusterlora reads {FORMAT}; use the one that wrote it")
    files = {str(name): (str(digest), int(size)) for name, (digest, size) in entries["files"].items()}
    manifest = Manifest(**(entries | {"files": files, "without_weights": tuple(map(str, entries["without_weights"]))}))
    if manifest.database not in ("sqlite", "postgresql") or not isinstance(manifest.created, str) or type(manifest.in_shards) is not int:
        raise ValueError("its manifest is none")
    return manifest


def _refuse_odd_members(file: Path, members: list[tarfile.TarInfo], manifest: Manifest) -> None:
    if odd := next((one for one in members if not (one.isreg() and not one.issparse() and _is_written_by_us(one.name))), None):
        raise BadData(f"{file} holds {printable(odd.name)}, which is no plain file or under no name of a backup; use another backup")
    sizes = {one.name: one.size for one in members}
    expected = {name: size for name, (_, size) in manifest.files.items()}
    if differing := sizes.keys() ^ expected.keys():
        raise BadData(f"{file} has other entries than its manifest, for example {printable(min(differing))}; use another backup")
    if len(members) != len(sizes) or sizes != expected:
        odd_name = min((name for name in sizes if sizes[name] != expected[name]), default=MANIFEST)
        raise BadData(f"{file} has entries twice or in other sizes than its manifest says, see {printable(odd_name)}; use another backup")
    if STUDY_DATABASE not in sizes:
        raise BadData(f"{file} has no study database; use another backup")


def _is_written_by_us(name: str) -> bool:
    path = PurePosixPath(name)
    if name in {STUDY_DATABASE, MLFLOW_DATABASE, PREFECT_DATABASE, *(f"{SECRETS}/{Path(one).name}" for one in (PASSWORDS, API_KEYS))}:
        return True
    is_inside = path.as_posix() == name and ".." not in path.parts and "\0" not in name
    return is_inside and len(path.parts) > 1 and path.parts[0] in (RESULTS, ARTIFACTS) and path.parts[:2] != (RESULTS, ".serving")


def _refuse_overwriting(place: Place, manifest: Manifest) -> None:
    """Refuse a database or passwords in the place of a file of the backup, or of one that is there."""
    own = files_of_sqlite(place.database)
    results = place.results.resolve()
    taken = {results.joinpath(*PurePosixPath(name).parts[1:]): name for name in manifest.files if name.startswith(f"{RESULTS}/")}
    if clash := next((name for path, name in taken.items() if path in own), None):
        raise BadSettings(f"the backup holds {printable(clash)}, and CLUSTERLORA_DATABASE_URL names that file; give it another name")
    if f"{SECRETS}/{PASSWORDS}" in manifest.files and (place.services / PASSWORDS).exists():
        raise BadSettings(f"{place.services / PASSWORDS} exists, and the backup has passwords; move it away")


def _refuse_full(place: Place, manifest: Manifest) -> None:
    in_results = sum(size for name, (_, size) in manifest.files.items() if name.startswith(f"{RESULTS}/"))
    # The study database is unpacked among the services, and copied to where it belongs.
    needs = {place.results: in_results + manifest.files[STUDY_DATABASE][1], place.services: manifest.size_bytes - in_results}
    for folder in needs:
        needed = sum(size for other, size in needs.items() if other.stat().st_dev == folder.stat().st_dev)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise BadData(
                f"the backup needs {needed / 1e9:.1f} GB on the disk of {folder}, and {free / 1e9:.1f} GB are free; free some space"
            )


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, file: Path, manifest: Manifest) -> None:
    """Write one member, and compare its digest."""
    sha256 = hashlib.sha256()
    try:
        _make_folders(target.parent)
        opened = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with _content(archive, member) as packed, open(opened, "wb") as unpacked:  # noqa: PTH123
            while block := packed.read(_BLOCK):
                sha256.update(block)
                unpacked.write(block)
    except _NOT_WHOLE as problem:
        if getattr(problem, "errno", None) == errno.ENOSPC:
            raise
        raise BadData(
            f"{file}: {printable(member.name)} cannot be unpacked to {target.parent} ({problem}); use another backup"
        ) from problem
    if sha256.hexdigest() != manifest.files[member.name][0]:
        raise BadData(f"{file}: {printable(member.name)} is not what was backed up; use another backup")


def _make_folders(path: Path) -> None:
    """Create a folder and its parents, all closed to other users, whatever the umask leaves open: `mkdir` closes only the last."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o700)


def _put_in_place(place: Place, results: Path, services: Path) -> None:
    """Move everything, the study database last: without it, nothing of this is a study yet. On an error all of it is removed again."""
    entries = (results / RESULTS).iterdir() if (results / RESULTS).is_dir() else ()
    moves = [(entry, place.results / entry.name) for entry in entries]
    for name, target in (
        (MLFLOW_DATABASE, place.services / "mlflow" / "mlflow.db"),
        (ARTIFACTS, place.services / "mlflow" / "artifacts"),
        (PREFECT_DATABASE, place.services / "prefect" / "prefect.db"),
        (f"{SECRETS}/{PASSWORDS}", place.services / PASSWORDS),
        (f"{SECRETS}/{Path(API_KEYS).name}", place.results / API_KEYS),
    ):
        if (services / name).exists():
            moves.append((services / name, target))
    made = [folder for folder in dict.fromkeys(target.parent for _, target in moves) if not folder.exists()]
    begun: list[Path] = []
    for unpacked in (results, services):
        sync_all(unpacked)
    try:
        for folder in made:
            folder.mkdir(mode=0o700)
        for source, target in moves:
            begun.append(target)
            shutil.move(source, target)
        for changed in (place.results, place.services, *made):
            sync(changed)
        restore_database(place.database, services / STUDY_DATABASE)
    except BaseException:
        # None of them was there before.
        for target in reversed(begun):
            if target.is_dir():
                shutil.rmtree(target, ignore_errors=True)
            else:
                target.unlink(missing_ok=True)
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise
