"""What was deleted is in no byte of a database that was rewritten, whether or not its SQLite overwrites what it deletes."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from clusterlora.stores.server_databases import empty_logs, purge_mlflow
from clusterlora.stores.sql import SqlStudyStore

SECRET = "zyx-canary-7731 " * 300


def scrub(database: Path) -> None:
    SqlStudyStore(f"sqlite:///{database}").scrub()


def purge(database: Path) -> None:
    assert purge_mlflow(database.parents[1], (), "http://127.0.0.1:1") == ()


@pytest.mark.parametrize(("rewrite", "path"), [(scrub, "studies.db"), (purge, "mlflow/mlflow.db")])
def test_deleted_rows_are_in_no_byte_of_the_files(rewrite: Callable[[Path], None], path: str, tmp_path: Path) -> None:
    database = tmp_path / path
    database.parent.mkdir(exist_ok=True)
    if rewrite is scrub:
        SqlStudyStore(f"sqlite:///{database}")
    with closing(sqlite3.connect(database, isolation_level=None)) as user:
        user.execute("PRAGMA journal_mode=WAL")
        user.execute("PRAGMA secure_delete=OFF")
        if rewrite is purge:
            user.execute("CREATE TABLE model_versions (name TEXT, version INTEGER, current_stage TEXT, storage_location TEXT)")
            user.execute("CREATE TABLE model_version_tags (name TEXT, version INTEGER)")
            user.executemany("INSERT INTO model_versions VALUES ('m', ?, ?, ?)", [(1, "None", "a"), (2, "Deleted_Internal", SECRET)])
            user.executemany("INSERT INTO model_version_tags VALUES ('m', ?)", [(1,), (2,)])
        user.execute("CREATE TABLE said (words TEXT)")
        user.execute("INSERT INTO said VALUES (?)", (SECRET,))
        user.execute("DELETE FROM said")
        assert any(SECRET[:15].encode() in file.read_bytes() for file in database.parent.iterdir()), "it is there before"
        rewrite(database)
        assert not any(SECRET[:15].encode() in file.read_bytes() for file in database.parent.iterdir())
        if rewrite is purge:
            assert user.execute("SELECT version, storage_location FROM model_versions").fetchall() == [(1, "a"), (2, None)]
            assert user.execute("SELECT version FROM model_version_tags").fetchall() == [(1,)]


def test_the_logs_of_the_services_are_cut_to_nothing_while_somebody_writes_to_them(tmp_path: Path) -> None:
    files = [tmp_path / "logs" / name for name in ("prefect.log", "prefect.log.1")]
    files[0].parent.mkdir()
    for file in files:
        file.write_text(SECRET, encoding="utf-8")
    with files[0].open("a", encoding="utf-8") as writer:
        empty_logs(tmp_path)
        writer.write("alive\n")
    assert [file.read_text(encoding="utf-8") for file in files] == ["alive\n", ""]
