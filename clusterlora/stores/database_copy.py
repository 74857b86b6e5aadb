"""Copies of databases that are in use: SQLite's backup API, and pg_dump."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError

from clusterlora.errors import BadData, BadSettings, ServiceDown
from clusterlora.stores import schema
from clusterlora.stores.database import parse_url, redacted

_PAGES_PER_STEP = 1024
"""Between two steps writers get their turn."""


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


def restore_database(url: str, kind: str, source: Path) -> None:
    """Put a dumped study database where a URL says, which must hold none.

    Raises:
        BadSettings: the URL is of another kind than the dump, holds a database, or pg_restore is missing or refuses.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() != kind:
        example = "a postgresql URL" if kind == "postgresql" else "no value, or a sqlite URL"
        raise BadSettings(f"the backup holds a {kind} database, and CLUSTERLORA_DATABASE_URL is {redacted(parsed)}; give it {example}")
    if kind == "sqlite":
        target = Path(str(parsed.database))
        if target.exists():
            raise BadSettings(f"{target} exists; restore where there is no study database yet, or move it away")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o600)
        return
    refuse_used_database(url)
    _postgresql("pg_restore", parsed, "--no-owner", "--no-privileges", "--exit-on-error", str(source))


def refuse_used_database(url: str) -> None:
    """Raise BadSettings where a URL leads to a database that has tables or rows already, ServiceDown where nothing answers."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        if Path(str(parsed.database)).exists():
            raise BadSettings(f"study database {redacted(parsed)} exists; restore where there is none yet, or move it away")
        return
    engine = sa.create_engine(parsed, poolclass=sa.NullPool)
    try:
        tables = sa.inspect(engine).get_table_names()
    except OperationalError as problem:
        raise ServiceDown(f"study database {redacted(parsed)} does not answer; start it or correct its URL") from problem
    if tables:
        raise BadSettings(f"study database {redacted(parsed)} has tables already; restore into an empty one: createdb NAME")


def adapter_keys(url: str) -> frozenset[str]:
    """Return the keys of all recorded adapters; the database is not migrated. Raises as `dump_database`."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).is_file():
        raise BadData(f"there is no study database {redacted(parsed)} to back up; nothing was ever run here")
    try:
        with sa.create_engine(parsed, poolclass=sa.NullPool).connect() as connection:
            return frozenset(connection.execute(sa.select(schema.adapters.c.key)).scalars())
    except DBAPIError as problem:
        cause = str(problem.orig).strip().partition("\n")[0]
        raise ServiceDown(f"study database {redacted(parsed)} cannot be read: {cause}; start it, or correct its URL") from problem


def _postgresql(program: str, url: URL, *arguments: str) -> None:
    """Run a client program of PostgreSQL against a database; the password is in its environment, not in the list of processes."""
    if shutil.which(program) is None:
        raise BadSettings(f"the study database is in PostgreSQL, and {program} is not installed here; install the PostgreSQL client")
    password = url.password or url.query.get("password")
    environment = os.environ | ({"PGPASSWORD": str(password)} if password else {})
    address = url.set(drivername="postgresql", password=None).difference_update_query(["password"]).render_as_string(hide_password=False)
    command = [program, "--no-password", f"--dbname={address}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = next(iter(done.stderr.strip().splitlines()), "it says nothing")
        raise BadSettings(f"{program} refused {redacted(url)}: {said}; its version must not be older than the server's")
