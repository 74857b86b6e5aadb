"""Backup of a whole installation in one file, and its restoration on an empty one.

The file is a tar archive: copies of the databases, each as it was at one moment, then adapters, results and MLflow's artifacts, and last
`manifest.json` with the SHA-256 of everything before it. Databases are copied first: whatever they speak of was written before them, so it
is among the files that are copied after.
"""

import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from clusterlora import __version__
from clusterlora.durable import make_folder, put_in_place, sync
from clusterlora.errors import BadData, BadSettings, printable
from clusterlora.stores.database_copy import adapter_keys, copy_sqlite, dump_database, refuse_used_database, restore_database
from deployments import private_files, services_state

FORMAT = 1
MANIFEST = "manifest.json"
STUDY_DATABASE, MLFLOW_DATABASE, PREFECT_DATABASE = "database/studies", "database/mlflow.db", "database/prefect.db"
_RESULTS, _ARTIFACTS, _SECRETS = "studies", "mlflow-artifacts", "secrets"
_PASSWORDS, _API_KEYS = "passwords.json", ".serving/api-keys"
_DATABASE_FILES = ("clusterlora.db", "clusterlora.db-wal", "clusterlora.db-shm", "clusterlora.db.lock", "clusterlora.db-journal")
_MAY_VANISH = (".adapters/.scratch", ".outbox")
"""Folders of the results whose files their writers remove at any time."""
_PREFECT_SECRETS = ("block_document_reference", "block_document", "configuration")
"""Tables of Prefect with secrets: blocks, and the key that encrypts them."""
_MLFLOW_SECRETS = ("webhook_events", "webhooks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an installation is: the folder of its results, that of its services, and the URL of its study database."""

    results: Path
    services: Path
    database: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup says of itself. `files` has (SHA-256, bytes) of every member but the manifest, by name."""

    format: int
    clusterlora: str
    created: str
    database: str
    with_passwords: bool
    files: Mapping[str, tuple[str, int]]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(size for _, size in self.files.values())

    @property
    def n_adapters(self) -> int:
        """Adapters whose weights are in it."""
        parts = (PurePosixPath(name).parts for name in self.files)
        return len({part[2] for part in parts if part[:2] == (_RESULTS, ".adapters") and not part[2].startswith(".")})


def back_up(place: Place, file: Path, *, with_passwords: bool = False) -> Manifest:
    """Write an installation to a file, while it may be in use; return what was written.

    Raises:
        BadSettings: the file exists, or is to be inside what is backed up.
        BadData: there is nothing to back up, or adapters were removed meanwhile, so that the copy would not be whole.
    """
    if file.exists():
        raise BadSettings(f"{file} exists; give a new name, or remove it")
    if inside := next((folder for folder in (place.results, place.services) if file.resolve().is_relative_to(folder)), None):
        raise BadSettings(f"{file} is in {inside}, which it is a backup of; write it elsewhere")
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    files: dict[str, tuple[str, int]] = {}
    make_folder(file.parent)
    try:
        # It holds private conversations.
        opened = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(opened, "wb") as raw, tarfile.open(fileobj=raw, mode="w") as archive, TemporaryDirectory(dir=file.parent) as scratch:  # noqa: PTH123
            keys = adapter_keys(place.database)
            kind = _add_databases(archive, place, Path(scratch), files, with_passwords=with_passwords)
            _add_folder(archive, place.results, _RESULTS, files)
            _add_folder(archive, place.services / "mlflow" / "artifacts", _ARTIFACTS, files)
            if with_passwords:
                for secret in (place.services / _PASSWORDS, place.results / _API_KEYS):
                    if secret.is_file():
                        _add(archive, secret, f"{_SECRETS}/{secret.name}", files)
            if gone := keys - adapter_keys(place.database):
                raise BadData(f"{len(gone)} adapters were removed while they were copied, for example {min(gone)}; back up again")
            made = datetime.now(UTC).isoformat(timespec="seconds")
            manifest = Manifest(
                format=FORMAT, clusterlora=__version__, created=made, database=kind, with_passwords=with_passwords, files=files
            )
            text = json.dumps(asdict(manifest)).encode()
            archive.addfile(_member(MANIFEST, len(text)), io.BytesIO(text))
        put_in_place(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return manifest


def _add_databases(
    archive: tarfile.TarFile, place: Place, scratch: Path, files: dict[str, tuple[str, int]], *, with_passwords: bool
) -> str:
    """Add copies of the databases, the studies' first: it speaks of runs in MLflow, which speaks of none of its rows."""
    kind = dump_database(place.database, scratch / "studies")
    _add(archive, scratch / "studies", STUDY_DATABASE, files)
    for name, source, secrets in (
        (MLFLOW_DATABASE, place.services / "mlflow" / "mlflow.db", _MLFLOW_SECRETS),
        (PREFECT_DATABASE, place.services / "prefect" / "prefect.db", _PREFECT_SECRETS),
    ):
        if source.is_file():
            copy_sqlite(source, scratch / source.name, empty_tables=() if with_passwords else secrets)
            _add(archive, scratch / source.name, name, files)
    return kind


def _add_folder(archive: tarfile.TarFile, folder: Path, name: str, files: dict[str, tuple[str, int]]) -> None:
    for file in sorted(_files(folder)):
        relative = file.relative_to(folder)
        try:
            _add(archive, file, f"{name}/{relative.as_posix()}", files)
        except FileNotFoundError:
            if not any(relative.is_relative_to(one) for one in _MAY_VANISH):
                raise BadData(f"{file} was removed while it was copied; back up again") from None


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files to copy: neither databases and API keys, which are not copied as files, nor what is half written."""
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = [name for name in folders if (here / name).relative_to(folder).as_posix() not in (".serving", ".adapters/.incoming")]
        for name in names:
            file = here / name
            is_database = here == folder and name in _DATABASE_FILES
            if not is_database and not name.endswith(".partial") and (file.is_file() or not file.exists()) and not file.is_symlink():
                yield file


def _add(archive: tarfile.TarFile, file: Path, name: str, files: dict[str, tuple[str, int]]) -> None:
    """Add as many bytes of a file as it has when it is opened: a log that grows meanwhile is cut there."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        hashed = _Hashed(opened)
        try:
            archive.addfile(_member(name, size), hashed)  # pyright: ignore[reportArgumentType]  (it only reads)
        except OSError as problem:
            raise BadData(f"{file} could not be copied ({problem}); if it became shorter meanwhile, back up again") from problem
    files[name] = (hashed.sha256.hexdigest(), size)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


class _Hashed:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        self.sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        block: bytes = self._opened.read(size)
        self.sha256.update(block)
        return block


def restore(place: Place, file: Path) -> Manifest:
    """Put a backup where nothing is yet, after every digest was checked; return what it says of itself.

    Raises:
        BadSettings: there are studies, services or a study database there already.
        BadData: the file is no whole backup, or an entry differs from its digest.
    """
    _refuse_used(place)
    with _unpacked(file, place) as (folder, manifest):
        for name, target in (
            (MLFLOW_DATABASE, place.services / "mlflow" / "mlflow.db"),
            (PREFECT_DATABASE, place.services / "prefect" / "prefect.db"),
            (f"{_SECRETS}/{_PASSWORDS}", place.services / _PASSWORDS),
            (f"{_SECRETS}/api-keys", place.results / _API_KEYS),
        ):
            if (folder / name).is_file():
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                shutil.move(folder / name, target)
        if (folder / _ARTIFACTS).is_dir():
            (place.services / "mlflow").mkdir(mode=0o700, exist_ok=True)
            shutil.move(folder / _ARTIFACTS, place.services / "mlflow" / "artifacts")
        if (folder / _RESULTS).is_dir():
            for entry in (folder / _RESULTS).iterdir():
                shutil.move(entry, place.results / entry.name)
        # Last: without it, nothing of this is a study yet.
        restore_database(place.database, manifest.database, folder / STUDY_DATABASE)
        for changed in (place.results, place.services):
            sync(changed)
    return manifest


def _refuse_used(place: Place) -> None:
    refuse_used_database(place.database)
    if services_state.load(place.services).running():
        raise BadSettings(f"the servers of {place.services} run; stop them first: clusterlora down")
    for folder, variable in ((place.results, "CLUSTERLORA_HOME"), (place.services / "mlflow", "CLUSTERLORA_STACK_HOME")):
        if folder.is_dir() and any(entry.name not in _DATABASE_FILES for entry in folder.iterdir()):
            raise BadSettings(f"{folder} is not empty; restore into an empty installation, set {variable} to another folder")
    if (place.services / "prefect" / "prefect.db").exists():
        raise BadSettings(f"{place.services} holds a Prefect database; set CLUSTERLORA_STACK_HOME to another folder")


@contextmanager
def _unpacked(file: Path, place: Place) -> Iterator[tuple[Path, Manifest]]:
    """Yield a folder with the checked contents, on the file system of the results, and the manifest."""
    if not file.is_file():
        raise BadData(f"there is no backup {file}; write one with: clusterlora backup FILE")
    for folder in (place.results, place.services):
        private_files.make_folder(folder)
    free = shutil.disk_usage(place.results).free
    if file.stat().st_size > free:
        raise BadData(f"{file} has {file.stat().st_size / 1e9:.1f} GB, and {place.results} has {free / 1e9:.1f} GB left; free some space")
    with TemporaryDirectory(dir=place.services, prefix=".restoring-") as temporary:
        folder = Path(temporary)
        try:
            with tarfile.open(file) as archive:
                archive.extractall(folder, filter="data")
            entries: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (tarfile.TarError, OSError, EOFError, ValueError) as problem:
            raise BadData(f"{file} is no whole backup ({problem}); use another one") from problem
        if entries.get("format") != FORMAT:
            raise BadData(
                f"{file} is a backup of format {entries.get('format')}, this clusterlora reads {FORMAT}; use the one that wrote it"
            )
        manifest = Manifest(**{**entries, "files": {name: tuple(said) for name, said in entries["files"].items()}})
        _refuse_other_content(file, folder, manifest)
        yield folder, manifest


def _refuse_other_content(file: Path, folder: Path, manifest: Manifest) -> None:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if stat.S_ISREG(path.lstat().st_mode)}
    found.pop(MANIFEST)
    if differing := found.keys() ^ manifest.files.keys():
        raise BadData(f"{file} has other entries than its manifest, for example {printable(min(differing))}; use another backup")
    for name, path in found.items():
        path.chmod(0o600)
        with path.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != manifest.files[name][0]:
                raise BadData(f"{file}: {printable(name)} is not what was backed up; use another backup")
