"""Copies of databases that are in use: SQLite's backup API, and pg_dump."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError

from clusterlora.durable import make_folder, put_in_place
from clusterlora.errors import BadData, BadSettings, ServiceDown
from clusterlora.stores import schema
from clusterlora.stores.database import parse_url, redacted

_PAGES_PER_STEP = 1024
"""Between two steps writers get their turn."""
_LEFT_BY_SQLITE = ("-wal", "-journal")


def copy_sqlite(source: Path, target: Path, *, empty_tables: Sequence[str] = ()) -> None:
    """Write a copy of a SQLite database as it is at one moment, whoever writes to it meanwhile.

    Args:
        empty_tables: tables whose rows are not to be in the copy, nor left on its free pages; missing ones are passed over.
    """
    with closing(sqlite3.connect(source, timeout=60)) as original, closing(sqlite3.connect(target)) as copy:
        original.backup(copy, pages=_PAGES_PER_STEP, sleep=0.01)
        # A copy in WAL mode would be two files.
        copy.execute("PRAGMA journal_mode=DELETE")
        if empty_tables:
            copy.execute("PRAGMA foreign_keys=ON")
            existing = {name for (name,) in copy.execute("select name from sqlite_master where type = 'table'")}
            with copy:
                for table in empty_tables:
                    if table in existing:
                        copy.execute(f'delete from "{table}"')
            copy.execute("VACUUM")
        if (problem := copy.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            raise BadData(f"the copy of {source} is damaged ({problem}); bring back an earlier backup")


def dump_database(url: str, target: Path) -> str:
    """Write the study database to a file as it is at one moment; return its kind, sqlite or postgresql.

    Raises:
        BadSettings: it is in PostgreSQL, and pg_dump is missing or refuses.
        ServiceDown: it does not answer.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        copy_sqlite(Path(str(parsed.database)), target)
        return "sqlite"
    _postgresql("pg_dump", parsed, "--format=custom", "--no-owner", "--no-privileges", f"--file={target}")
    return "postgresql"


def refuse_other_kind(url: str, kind: str) -> None:
    """Raise BadSettings where a dump of a kind cannot be restored at a URL, or pg_restore, which it needs, is missing."""
    parsed = parse_url(url)
    if parsed.get_backend_name() != kind:
        example = "a postgresql URL" if kind == "postgresql" else "no value, or a sqlite URL"
        raise BadSettings(f"the backup holds a {kind} database, and CLUSTERLORA_DATABASE_URL is {redacted(parsed)}; give it {example}")
    if kind == "postgresql":
        _refuse_missing("pg_restore")


def refuse_unreadable_dump(url: str, source: Path) -> None:
    """Raise BadSettings where pg_restore cannot read a dump for PostgreSQL, as an older one cannot; one of SQLite is a database itself."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "postgresql":
        _client("pg_restore", parsed, ["--list", str(source)])


def restore_database(url: str, source: Path) -> None:
    """Put a dumped study database of the right kind where a URL says, which must hold none; after an error it holds none.

    Raises:
        BadSettings: there is a database, or pg_restore refuses.
    """
    refuse_used_database(url)
    parsed = parse_url(url)
    if parsed.get_backend_name() == "postgresql":
        _postgresql("pg_restore", parsed, "--no-owner", "--no-privileges", "--single-transaction", str(source))
        return
    target = Path(str(parsed.database))
    make_folder(target.parent)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        shutil.copyfile(source, partial)
        partial.chmod(0o600)
        put_in_place(partial, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        partial.unlink(missing_ok=True)


def files_of_sqlite(url: str) -> frozenset[Path]:
    """Return the paths of a SQLite database's own files, whether they exist or not; none for PostgreSQL."""
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite":
        return frozenset()
    named = Path(str(parsed.database))
    # SQLite puts its files beside what a link leads to, the lock is beside the link.
    paths = {named.parent.resolve() / named.name, named.resolve()}
    return frozenset(path.with_name(f"{path.name}{suffix}") for path in paths for suffix in ("", *_LEFT_BY_SQLITE, "-shm", ".lock"))


def refuse_used_database(url: str) -> None:
    """Raise BadSettings where a URL leads to a database that has tables or rows already, ServiceDown where nothing answers."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        refuse_used_sqlite(Path(str(parsed.database)), f"study database {redacted(parsed)}")
        return
    engine = sa.create_engine(parsed, poolclass=sa.NullPool)
    try:
        tables = sa.inspect(engine).get_table_names()
    except OperationalError as problem:
        raise ServiceDown(f"study database {redacted(parsed)} does not answer; start it or correct its URL") from problem
    if tables:
        raise BadSettings(f"study database {redacted(parsed)} has tables already; restore into an empty one: createdb NAME")


def refuse_used_sqlite(file: Path, what: str) -> None:
    """Raise BadSettings where a file exists, or a journal that SQLite would apply to whatever is put there."""
    if file.exists() or file.is_symlink():
        raise BadSettings(f"{what} exists; restore where there is none yet, or move it away")
    if left := next((one for suffix in _LEFT_BY_SQLITE if (one := file.with_name(f"{file.name}{suffix}")).exists()), None):
        raise BadSettings(f"{left} is left from another database; move it away, as SQLite would apply it to the restored one")


def adapter_runs(url: str) -> dict[str, str | None]:
    """Return the key of every recorded adapter with the run in MLflow that has its weights, or None.

    The database is not migrated. Raises as `dump_database`.
    """
    table = schema.adapters.c
    return {key: None if uri is None else run_id for key, run_id, uri in _rows(url, sa.select(table.key, table.run_id, table.uri))}


def people_by_study(url: str) -> dict[str, tuple[str, ...]]:
    """Return the ids of the people of every study. The database is not migrated. Raises as `dump_database`."""
    table = schema.personas.c
    found: dict[str, list[str]] = {}
    for study, persona_id in _rows(url, sa.select(table.study, table.id)):
        found.setdefault(study, []).append(persona_id)
    return {study: tuple(ids) for study, ids in found.items()}


def _rows(url: str, query: sa.Executable) -> list[tuple[Any, ...]]:
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).is_file():
        raise BadData(f"there is no study database {redacted(parsed)} to back up; nothing was ever run here")
    try:
        with sa.create_engine(parsed, poolclass=sa.NullPool).connect() as connection:
            return [tuple(row) for row in connection.execute(query)]
    except DBAPIError as problem:
        cause = str(problem.orig).strip().partition("\n")[0]
        raise ServiceDown(f"study database {redacted(parsed)} cannot be read: {cause}; start it, or correct its URL") from problem


def _postgresql(program: str, url: URL, *arguments: str) -> None:
    """Run a client program of PostgreSQL against a database."""
    address = url.set(drivername="postgresql", password=None).difference_update_query(["password"]).render_as_string(hide_password=False)
    _client(program, url, ["--no-password", f"--dbname={address}", *arguments])


def _client(program: str, url: URL, arguments: Sequence[str]) -> None:
    """Run a client program of PostgreSQL; the password is in its environment, not in the list of processes."""
    _refuse_missing(program)
    password = url.password or url.query.get("password")
    environment = os.environ | ({"PGPASSWORD": str(password)} if password else {})
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = next(iter(done.stderr.strip().splitlines()), "it says nothing")
        advice = "its version must not be older than the server's, nor than that of the pg_dump that wrote a backup"
        raise BadSettings(f"{program} refused {redacted(url)}: {said}; {advice}")


def _refuse_missing(program: str) -> None:
    if shutil.which(program) is None:
        raise BadSettings(f"the study database is in PostgreSQL, and {program} is not installed here; install the PostgreSQL client")
