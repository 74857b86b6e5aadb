"""Backup of a whole installation in one file.

The file is a tar archive: copies of the databases, each as it was at one moment, then adapters, results and MLflow's artifacts, and last
`manifest.json` with the SHA-256 of everything before it. Databases are copied first: whatever they speak of was written before them, so it
is among the files that are copied after. Links are followed, so what is on another disk is in it, too. `restore.py` reads it.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from clusterlora import __version__
from clusterlora.adapters.shards import SUFFIX, open_shard
from clusterlora.durable import make_folder, put_in_place
from clusterlora.errors import BadData, BadSettings
from clusterlora.pseudonyms import pseudonym
from clusterlora.stores.database_copy import adapter_runs, copy_sqlite, dump_database, files_of_sqlite, people_by_study
from clusterlora.stores.departures import BACKUPS, BACKUPS_OUTSIDE, MANIFEST, KnownBackup, installation, note_backup, refuse_unforgotten

FORMAT, READABLE = 2, (1, 2)
"""The format that is written, and those that are read: the first knew no shards."""
STUDY_DATABASE, MLFLOW_DATABASE, PREFECT_DATABASE = "database/studies", "database/mlflow.db", "database/prefect.db"
RESULTS, ARTIFACTS, SECRETS = "studies", "mlflow-artifacts", "secrets"
PASSWORDS, API_KEYS = "passwords.json", ".serving/api-keys"
RESTORING = ".restoring-"
"""How names of folders begin into which a backup is unpacked."""
SHARDS = ".adapters/.shards"
_MAY_VANISH = (".adapters/.scratch", ".outbox")
"""Folders of the results whose files their writers remove at any time."""
PREFECT_SECRETS = ("block_document_reference", "block_document", "configuration", "csrf_token")
"""Tables of Prefect with secrets: blocks, the key that encrypts them, and tokens of its pages."""
MLFLOW_SECRETS = ("webhook_events", "webhooks", "secrets", "mcp_access_endpoints", "job_locks", "jobs")
"""Tables of MLflow with secrets: addresses with tokens, API keys of its gateway (encrypted, by default with a known passphrase), of jobs.

The gateway's endpoints and models stay, without a key.
"""


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
    without_weights: tuple[str, ...]
    """Keys of recorded adapters whose weights are neither in the results nor in MLflow's artifacts."""
    in_shards: int = 0
    """Adapters whose weights are in shards among the results."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(size for _, size in self.files.values())

    @property
    def n_adapters(self) -> int:
        """Adapters whose weights are in it."""
        parts = (PurePosixPath(name).parts for name in self.files)
        folders = {part[2] for part in parts if part[:2] == (RESULTS, ".adapters") and not part[2].startswith(".")}
        return len(folders) + self.in_shards


def back_up(place: Place, file: Path, *, with_passwords: bool = False) -> Manifest:
    """Write an installation to a file, while it may be in use; return what was written.

    The installation remembers the backup and who is in it, by digests under its key, which is in the backup.

    Raises:
        BadSettings: the file exists, or is to be inside what is backed up; or people have to be forgotten again first.
        BadData: there is nothing to back up, something cannot be read, a link leads nowhere or back, or adapters were removed meanwhile.
            The copy would not be whole.
    """
    refuse_nested(place)
    refuse_unforgotten(place.results)
    if file.exists():
        raise BadSettings(f"{file} exists; give a new name, or remove it")
    real = Path(os.path.realpath(file))
    if inside := next((folder for folder in (place.results, place.services) if real.is_relative_to(os.path.realpath(folder))), None):
        raise BadSettings(f"{file} is in {inside}, which it is a backup of; write it elsewhere")
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    files: dict[str, tuple[str, int]] = {}
    make_folder(file.parent)
    try:
        # It holds private conversations.
        opened = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(opened, "wb") as raw, tarfile.open(fileobj=raw, mode="w") as archive, TemporaryDirectory(dir=file.parent) as scratch:  # noqa: PTH123
            made = datetime.now(UTC).isoformat(timespec="seconds")
            runs, people = adapter_runs(place.database), people_of(place)
            kind = _add_databases(archive, place, Path(scratch), files, with_passwords=with_passwords)
            # Who came or left while it was copied counts as being in it.
            people = tuple(dict.fromkeys((*people, *people_of(place))))
            own = files_of_sqlite(place.database)
            closed = tuple(Path(os.path.realpath(one)) for one in (place.services, place.results / ".serving", file))
            _add_folder(archive, place.results, RESULTS, files, own=own, closed=closed)
            _add_folder(archive, place.services / "mlflow" / "artifacts", ARTIFACTS, files, own=own, closed=closed)
            if with_passwords:
                for secret in (place.services / PASSWORDS, place.results / API_KEYS):
                    if secret.is_file():
                        _add(archive, secret, f"{SECRETS}/{secret.name}", files)
            if gone := runs.keys() - adapter_runs(place.database).keys():
                raise BadData(f"{len(gone)} adapters were removed while they were copied, for example {min(gone)}; back up again")
            in_shards = _in_shards(place, files)
            manifest = Manifest(
                format=FORMAT,
                clusterlora=__version__,
                created=made,
                database=kind,
                with_passwords=with_passwords,
                files=files,
                without_weights=_without_weights(runs, files, in_shards),
                in_shards=len(in_shards),
            )
            text = json.dumps(asdict(manifest)).encode()
            archive.addfile(_member(MANIFEST, len(text)), io.BytesIO(text))
        sha256 = hashlib.sha256(text).hexdigest()
        note_backup_of(place, KnownBackup(str(real), sha256, made, people, str(installation(place.results))))
        put_in_place(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return manifest


def note_backup_of(place: Place, backup: KnownBackup) -> None:
    """Remember a backup with the results, and in the servers' folder, which no restore overwrites."""
    for folder in (place.results / BACKUPS, place.services / BACKUPS_OUTSIDE):
        note_backup(folder, backup)


def people_of(place: Place) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the keyed digests of the people of every study."""
    ids_by_study = people_by_study(place.database)
    # The key is in every backup, so that a restored one can tell whom its installation has forgotten.
    pseudonym(place.results, "", make_key=True)
    return tuple((study, tuple(pseudonym(place.results, one) for one in ids)) for study, ids in sorted(ids_by_study.items()))


def _add_databases(
    archive: tarfile.TarFile, place: Place, scratch: Path, files: dict[str, tuple[str, int]], *, with_passwords: bool
) -> str:
    """Add copies of the databases, the studies' first: it speaks of runs in MLflow, which speaks of none of its rows."""
    kind = dump_database(place.database, scratch / "studies")
    _add(archive, scratch / "studies", STUDY_DATABASE, files)
    for name, source, secrets in (
        (MLFLOW_DATABASE, place.services / "mlflow" / "mlflow.db", MLFLOW_SECRETS),
        (PREFECT_DATABASE, place.services / "prefect" / "prefect.db", PREFECT_SECRETS),
    ):
        if source.is_file():
            copy_sqlite(source, scratch / source.name, empty_tables=() if with_passwords else secrets)
            _add(archive, scratch / source.name, name, files)
    return kind


def refuse_nested(place: Place) -> None:
    """Raise BadSettings where the services, whose passwords are no results, are in the folder of the results."""
    if Path(os.path.realpath(place.services)).is_relative_to(os.path.realpath(place.results)):
        raise BadSettings(f"{place.services} is in {place.results}; move it out, and set CLUSTERLORA_STACK_HOME to where it is then")


def _in_shards(place: Place, files: Mapping[str, Any]) -> frozenset[str]:
    """Return the keys of the adapters in the shards among these files."""
    folder = f"{RESULTS}/{SHARDS}/"
    shards = [name.removeprefix(folder) for name in files if name.startswith(folder) and PurePosixPath(name).suffix == SUFFIX]
    keys: set[str] = set()
    for name in shards:
        try:
            keys.update(open_shard(place.results / SHARDS / name).keys)
        except FileNotFoundError:
            raise BadData(f"{place.results / SHARDS / name} was replaced while it was copied; back up again") from None
        except BadData:
            continue  # its adapters are fetched or trained again, as without a backup
    return frozenset(keys)


def _without_weights(runs: Mapping[str, str | None], files: Mapping[str, Any], in_shards: Collection[str]) -> tuple[str, ...]:
    parts = [PurePosixPath(name).parts for name in files]
    here = {part[2] for part in parts if part[:2] == (RESULTS, ".adapters")}.union(in_shards)
    # MLflow keeps the artifacts of a run in EXPERIMENT/RUN.
    tracked = {part[2] for part in parts if part[0] == ARTIFACTS and len(part) > 3}
    return tuple(sorted(key for key, run in runs.items() if key not in here and run not in tracked))


def _add_folder(
    archive: tarfile.TarFile,
    folder: Path,
    name: str,
    files: dict[str, tuple[str, int]],
    *,
    own: frozenset[Path],
    closed: tuple[Path, ...],
) -> None:
    """Add a folder's files but those in `own`; `closed` are folders that no link may lead to or around."""
    if folder.is_symlink() and not folder.exists():
        raise BadData(f"{folder} is a link to {folder.readlink()}, which is not there; bring it back, or remove the link")
    for file in sorted(_files(folder, own, closed)):
        relative = file.relative_to(folder)
        try:
            _add(archive, file, f"{name}/{relative.as_posix()}", files)
        except FileNotFoundError:
            if not any(relative.is_relative_to(one) for one in _MAY_VANISH):
                raise BadData(f"{file} was removed while it was copied; back up again") from None


def _files(folder: Path, own: frozenset[Path], closed: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files to copy: neither databases and API keys, which are not copied as files, nor what is half written."""
    for parent, folders, names in os.walk(folder, onerror=_refuse_unreadable, followlinks=True):
        here = Path(parent)
        real = here.resolve()
        folders[:] = [name for name in folders if not _is_left_out((here / name).relative_to(folder).as_posix())]
        names = [name for name in names if real / name not in own and not name.endswith(".partial")]
        for entry in (here / name for name in (*folders, *names)):
            if entry.is_symlink():
                _refuse_link(entry, folder, closed)
        for file in (here / name for name in names):
            if file.is_file() or not file.exists():
                yield file


def _is_left_out(folder: str) -> bool:
    return folder in (".serving", ".adapters/.incoming", ".adapters/.split") or folder.startswith(RESTORING)


def _refuse_unreadable(problem: OSError) -> None:
    if not isinstance(problem, FileNotFoundError):
        raise BadData(
            f"{problem.filename} cannot be read ({problem.strerror}); let its owner back up, or correct its permissions"
        ) from problem


def _refuse_link(link: Path, folder: Path, closed: tuple[Path, ...]) -> None:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError) as problem:
        raise BadData(f"{link} is a link to {link.readlink()}, which is not there; bring it back, or remove the link") from problem
    above = (parent.resolve() for parent in link.parents if parent.is_relative_to(folder))
    if any(parent.is_relative_to(target) for parent in above):
        raise BadData(f"{link} is a link to {target}, in which it is itself; remove it")
    if crossed := next((one for one in closed if one.is_relative_to(target) or target.is_relative_to(one)), None):
        raise BadData(f"{link} is a link to {target}, and {crossed} is not copied as a file; put a copy in the link's place, or remove it")


def _add(archive: tarfile.TarFile, file: Path, name: str, files: dict[str, tuple[str, int]]) -> None:
    """Add as many bytes of a file as it has when it is opened: a log that grows meanwhile is cut there."""
    try:
        opened = file.open("rb")
    except PermissionError as problem:
        raise BadData(f"{file} cannot be read ({problem.strerror}); let its owner back up, or correct its permissions") from problem
    with opened:
        size = os.fstat(opened.fileno()).st_size
        hashed = _Hashed(opened)
        try:
            archive.addfile(_member(name, size), hashed)  # pyrefly: ignore[bad-argument-type]  (it only reads)
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
