"""Open the study database: dialects, locking, migration on first use, and the error when it does not answer."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, InterfaceError, OperationalError

from clusterlora.durable import make_folder
from clusterlora.errors import BadSettings, ServiceDown
from clusterlora.stores.schema import REVISION

_BUSY_SECONDS = 60
_CONNECT_SECONDS = 10
_EXAMPLES = "sqlite:///path/to/file.db or postgresql://user@host/name"
_SQLITE = {
    "file is not a database": ("is damaged", "bring back a backup, or move the file away and begin anew, which trains adapters again"),
    "Could not decode": ("is damaged", "bring back a backup, or move the file away and begin anew, which trains adapters again"),
    "malformed": ("is damaged", "bring back a backup, or move the file away and begin anew, which trains adapters again"),
    "disk is full": ("cannot be written, as the disk is full", "free some space and run the same command again"),
    "readonly": ("cannot be written", "give yourself the right to write it, or set CLUSTERLORA_HOME to another folder"),
    "no such table": (
        "has lost its tables: its file was removed or replaced while it was in use",
        "bring it back, or run the same command again, which begins anew and trains again",
    ),
    "unable to open": ("cannot be opened", "it must be a file that you can write, in a folder that you can write"),
}
"""What SQLite says of a file, in our words, and what helps."""
_SMALLEST_GROWTH_BYTES = 64 * 2**10
"""SQLite's shared memory grows by 32 kB and its log by pages: with less than this free, a file that cannot be written has no space."""
_MIGRATION_LOCK = 0x636C6F7261
"""PostgreSQL advisory lock taken while migrating ("clora" in ASCII)."""


class Database:
    """A migrated study database. Safe to open from several processes at once, the first time included."""

    def __init__(self, url: str) -> None:
        """Connect, and bring the tables up to date.

        Raises:
            BadSettings: the URL is not one of SQLite or PostgreSQL, or the database is from a later version of clusterlora.
            ServiceDown: the database does not answer.
        """
        self._url = parse_url(url)
        self.engine = _engine(self._url)
        if self._url.get_backend_name() == "sqlite":
            self._make_lock_file()
        # Always under the lock: reading a database that another process is still creating can fail.
        with self._service_errors(), self._migration_lock():
            revision = self._revision()
            if revision != REVISION:
                self._migrate(revision)

    @property
    def redacted_url(self) -> str:
        """The URL without its password, safe to print."""
        return redacted(self._url)

    @contextmanager
    def reading(self) -> Generator[Connection]:
        """Yield a connection for reading; on SQLite readers never wait for the writer."""
        with self._service_errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """Yield a connection in a transaction that is committed when the block ends well."""
        # SQLite: a transaction that reads before it writes would fail at once when another process writes, instead of waiting.
        writer = self.engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        with self._service_errors(), writer.begin() as connection:
            yield connection

    def scrub(self) -> None:
        """Rewrite the database's files without deleted rows: they stay in free pages and in SQLite's write-ahead log until then.

        Raises:
            ServiceDown: somebody else is using the database.
        """
        with self._service_errors(), self.engine.execution_options(sqlite_begin="", isolation_level="AUTOCOMMIT").connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("VACUUM FULL")
                return
            connection.exec_driver_sql("VACUUM")
            # Shrinks the log to nothing, once no reader needs it; a first column of 1 says that one does.
            if connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar():
                raise ServiceDown(f"study database {self.redacted_url} is being read; run the same command again when nobody reads it")

    def upsert(self, connection: Connection, table: sa.Table, rows: list[dict[str, Any]], *, replace: bool, where: Any = None) -> None:
        """Insert rows; where the primary key exists, replace the row (if `where` holds for it) or leave it."""
        if not rows:
            return
        insert = _INSERT[connection.dialect.name](table)
        keys = [c.name for c in table.primary_key]
        if replace:
            others = {c.name: insert.excluded[c.name] for c in table.columns if c.name not in keys and c.name in rows[0]}
            statement = insert.on_conflict_do_update(index_elements=keys, set_=others, where=where)
        else:
            statement = insert.on_conflict_do_nothing(index_elements=keys)
        connection.execute(statement, rows)

    @contextmanager
    def _service_errors(self) -> Generator[None]:
        try:
            yield
        except DBAPIError as error:
            # The other types are errors in a statement, not in the service; SQLite reports some of those as operational errors, too.
            in_statement = str(error.orig).startswith(("no such column", "near "))
            if in_statement or type(error) not in (OperationalError, InterfaceError, DatabaseError):
                raise
            cause = str(error.orig).strip().partition("\n")[0]
            if cause == "disk I/O error" and self._disk_is_full():
                cause = "database or disk is full"
            raise self._service_down(cause) from error
        except UnicodeDecodeError as error:
            if self._url.get_backend_name() != "sqlite":
                raise
            # Damage in a text that the driver itself reads, such as a table's name in a message, is no error of the database.
            raise self._service_down(f"Could not decode a text in it ({error.reason})") from error

    def _service_down(self, cause: str) -> ServiceDown:
        what, fix = next((told for said, told in _SQLITE.items() if said in cause), ("does not answer", "start it or correct its URL"))
        return ServiceDown(f"study database {self.redacted_url} {what}: {cause}; {fix}")

    def _disk_is_full(self) -> bool:
        """Return whether SQLite cannot add to its files: its shared memory alone grows by 32 kB, and failing to is a disk error to it."""
        try:
            disk = os.statvfs(self._lock_file.parent)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize < _SMALLEST_GROWTH_BYTES or (disk.f_files > 0 and not disk.f_favail)

    @property
    def _lock_file(self) -> Path:
        return Path(f"{self._url.database}.lock")

    def _make_lock_file(self) -> None:
        try:
            make_folder(self._lock_file.parent)
            for file in (self._lock_file, Path(str(self._url.database))):
                # It holds private conversations; SQLite gives the files it creates beside it the same permissions.
                file.touch(mode=0o600)
        except OSError as error:
            raise ServiceDown(f"study database {self.redacted_url} cannot be written: {error}; choose a folder you may write to") from error

    def _revision(self) -> str | None:
        with self.engine.connect() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(sa.text("select version_num from alembic_version")).scalar()

    def _migrate(self, revision: str | None) -> None:
        if revision is not None and revision > REVISION:
            raise BadSettings(
                f"study database {self.redacted_url} is at revision {revision}, this clusterlora knows {REVISION}; upgrade clusterlora"
            )
        if self.engine.dialect.name == "sqlite":
            # WAL lets readers go on while another process writes. It is stored in the file and cannot be set inside a transaction.
            with self.engine.execution_options(sqlite_begin="").connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        _upgrade(self.engine)

    @contextmanager
    def _migration_lock(self) -> Generator[None]:
        if self._url.get_backend_name() == "sqlite":
            with self._lock_file.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        else:
            with self.engine.connect() as connection:
                connection.execute(sa.select(sa.func.pg_advisory_lock(_MIGRATION_LOCK)))
                try:
                    yield
                finally:
                    connection.execute(sa.select(sa.func.pg_advisory_unlock(_MIGRATION_LOCK)))


def _upgrade(engine: Engine) -> None:
    # Imported here: only a migration needs Alembic, and every other opening would pay for its import.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "clusterlora.stores:migrations")
    with engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, REVISION)


def parse_url(url: str) -> URL:
    """Return a URL of SQLite or PostgreSQL with its driver. Raises BadSettings for any other."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise BadSettings(f"the study database's URL cannot be read; write {_EXAMPLES}") from error
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg"}:
        raise BadSettings(f"study database {redacted(parsed)} is neither SQLite nor PostgreSQL; write {_EXAMPLES}")
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise BadSettings(f"study database {redacted(parsed)} names no file; write {_EXAMPLES}")
    return parsed


def redacted(url: URL) -> str:
    """Return a URL without its password, safe to print."""
    return url.difference_update_query(["password", "passfile", "sslpassword"]).render_as_string(hide_password=True)


def _engine(url: URL) -> Engine:
    # A connection per use costs milliseconds, survives a restart of the server, and shares nothing between threads or after a fork.
    timeout = {"timeout": _BUSY_SECONDS} if url.get_backend_name() == "sqlite" else {"connect_timeout": _CONNECT_SECONDS}
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=timeout)
    if url.get_backend_name() == "postgresql":
        return engine

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        # Turn off the driver's own transaction handling: it begins too late, and never with BEGIN IMMEDIATE.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if statement := connection.get_execution_options().get("sqlite_begin", "BEGIN"):
            connection.exec_driver_sql(statement)

    return engine


def _sqlite_insert(table: sa.Table) -> Any:
    from sqlalchemy.dialects.sqlite import insert

    return insert(table)


def _postgresql_insert(table: sa.Table) -> Any:
    from sqlalchemy.dialects.postgresql import insert

    return insert(table)


_INSERT = {"sqlite": _sqlite_insert, "postgresql": _postgresql_insert}
