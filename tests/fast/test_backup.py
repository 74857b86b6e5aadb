"""A whole installation in one file: copied while it is in use, restored where nothing is, refused where something is or differs."""

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event, Thread

import pytest

from clusterlora.errors import BadData, BadSettings
from clusterlora.planning.training_groups import remaining_groups
from clusterlora.ports.stores import Stores
from clusterlora.stores.database_copy import copy_sqlite
from clusterlora.verify import verify
from clusterlora.wiring import from_environment
from deployments import backup as module
from deployments.backup import Place, back_up, restore
from tests.fixtures.stages import state_of
from tests.fixtures.studies import Planted

SECRET = "hooks.example/T0KEN"
PASSWORD = "f00dfeed"


def place_at(folder: Path) -> Place:
    return Place(results=folder / "studies", services=folder / "services", database=f"sqlite:///{folder / 'studies' / 'clusterlora.db'}")


@pytest.fixture
def installed(planted: Planted, tmp_path: Path) -> Place:
    """Return an installation: studies with three trained adapters, and what MLflow, Prefect and the services leave beside them."""
    place = place_at(tmp_path / "here")
    place.services.mkdir(parents=True)
    planted.stores.home.rename(place.results)
    (place.results / "planted" / "results").mkdir(parents=True)
    (place.results / "planted" / "results" / "summary.md").write_text("unified wins")
    for name, tables in (("mlflow", ("runs", "webhooks")), ("prefect", ("flow_run", "block_document", "configuration"))):
        (place.services / name).mkdir()
        with closing(sqlite3.connect(place.services / name / f"{name}.db")) as database, database:
            for table in tables:
                database.execute(f"create table {table} (value text)")
                database.execute(f"insert into {table} values ('{SECRET if table != tables[0] else 'a run'}')")
    (place.services / "mlflow" / "artifacts").mkdir()
    (place.services / "mlflow" / "artifacts" / "model.json").write_text("{}")
    (place.services / "passwords.json").write_text(json.dumps({"prefect": PASSWORD, "mlflow": PASSWORD}))
    (place.results / ".serving").mkdir()
    (place.results / ".serving" / "api-keys").write_text(f"sk-{PASSWORD}\n")
    return place


def stores_of(place: Place) -> Stores:
    return from_environment({"CLUSTERLORA_HOME": str(place.results), "CLUSTERLORA_DATABASE_URL": place.database})


def test_what_is_restored_on_an_empty_home_agrees_and_goes_on_without_training(installed: Place, tmp_path: Path) -> None:
    written = back_up(installed, tmp_path / "all.tar")
    there = place_at(tmp_path / "there")
    assert restore(there, tmp_path / "all.tar") == written
    assert written.n_adapters == 3
    stores = stores_of(there)
    assert {name for name, _, _ in stores.studies.studies()} == {"planted", "untrained"}
    assert list(verify(["planted"], stores, live=None, repair=False)) == []
    assert (there.results / "planted" / "results" / "summary.md").read_text() == "unified wins"
    assert (there.services / "mlflow" / "artifacts" / "model.json").is_file()
    study = stores.studies.study("planted")
    # All that it would train is there, under the same keys.
    assert not list(remaining_groups(state_of(study, stores)))  # pyright: ignore[reportArgumentType]


def test_no_password_and_no_secret_address_is_in_it_unless_asked_for(installed: Place, tmp_path: Path) -> None:
    back_up(installed, tmp_path / "all.tar")
    content = (tmp_path / "all.tar").read_bytes()
    assert PASSWORD.encode() not in content
    assert SECRET.encode() not in content
    assert b"a run" in content
    assert (tmp_path / "all.tar").stat().st_mode & 0o077 == 0
    back_up(installed, tmp_path / "secret.tar", with_passwords=True)
    restore(there := place_at(tmp_path / "there"), tmp_path / "secret.tar")
    assert json.loads((there.services / "passwords.json").read_text())["mlflow"] == PASSWORD
    assert (there.results / ".serving" / "api-keys").read_text() == f"sk-{PASSWORD}\n"


def test_a_backup_is_not_put_over_anything(installed: Place, tmp_path: Path) -> None:
    back_up(installed, tmp_path / "all.tar")
    with pytest.raises(BadSettings, match="exists; restore where there is none yet"):
        restore(installed, tmp_path / "all.tar")
    there = place_at(tmp_path / "there")
    there.results.mkdir(parents=True, mode=0o700)
    (there.results / "mine.txt").touch()
    with pytest.raises(BadSettings, match="is not empty"):
        restore(there, tmp_path / "all.tar")
    with pytest.raises(BadSettings, match="write it elsewhere"):
        back_up(installed, installed.results / "all.tar")
    with pytest.raises(BadSettings, match="exists; give a new name"):
        back_up(installed, tmp_path / "all.tar")


def changed(archive: Path) -> Iterator[Path]:
    """Yield damaged copies: cut off, with another byte of an adapter, with a member that leads out of the folder."""
    whole = archive.read_bytes()
    cut = archive.with_name("cut.tar")
    cut.write_bytes(whole[: len(whole) // 2])
    yield cut
    with tarfile.open(archive) as opened:
        member = next(one for one in opened.getmembers() if one.name.endswith(".safetensors"))
    flipped = archive.with_name("flipped.tar")
    flipped.write_bytes(
        whole[: member.offset_data + 200] + bytes([whole[member.offset_data + 200] ^ 1]) + whole[member.offset_data + 201 :]
    )
    yield flipped
    outside = archive.with_name("outside.tar")
    outside.write_bytes(whole)
    with tarfile.open(outside, "a") as opened:
        opened.addfile(tarfile.TarInfo("../outside.txt"))
    yield outside


def test_a_damaged_backup_leaves_nothing_behind(installed: Place, tmp_path: Path) -> None:
    back_up(installed, tmp_path / "all.tar")
    for number, damaged in enumerate(changed(tmp_path / "all.tar")):
        there = place_at(tmp_path / f"there-{number}")
        with pytest.raises(BadData, match=damaged.name):
            restore(there, damaged)
        assert list(there.results.iterdir()) == []
        assert list(there.services.iterdir()) == []
    assert not (tmp_path / "outside.txt").exists()


def test_a_database_that_is_written_to_meanwhile_is_copied_as_it_is_at_one_moment(tmp_path: Path) -> None:
    """Two rows are written together, always; a copy that mixes moments has one without the other."""
    source, stop = tmp_path / "busy.db", Event()
    with closing(sqlite3.connect(source)) as database, database:
        database.execute("pragma journal_mode=wal")
        database.execute("create table one (n integer, filler text)")
        database.execute("create table other (n integer, filler text)")

    def write() -> None:
        with closing(sqlite3.connect(source, timeout=30)) as database:
            number = 0
            while not stop.is_set():
                with database:
                    database.execute("insert into one values (?, ?)", (number, "x" * 3000))
                    database.execute("insert into other values (?, ?)", (number, "x" * 3000))
                number += 1

    writer = Thread(target=write)
    writer.start()
    try:
        for copy in (tmp_path / f"copy-{n}.db" for n in range(5)):
            copy_sqlite(source, copy)
            with closing(sqlite3.connect(copy)) as database:
                counts = [database.execute(f"select count(*) from {table}").fetchone()[0] for table in ("one", "other")]
            assert counts[0] == counts[1]
    finally:
        stop.set()
        writer.join()


def test_adapters_that_go_while_they_are_copied_make_no_backup(installed: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = stores_of(installed)
    key = stores.studies.adapters("planted")[0].key
    add_folder = module._add_folder  # pyright: ignore[reportPrivateUsage]

    def forget_and_add(*arguments: object) -> None:
        stores.studies.forget_adapter(key)
        add_folder(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(module, "_add_folder", forget_and_add)
    with pytest.raises(BadData, match=f"removed while they were copied, for example {key}"):
        back_up(installed, tmp_path / "all.tar")
    assert not list(tmp_path.glob("*.tar"))


def test_where_nothing_was_ever_run_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="nothing was ever run here"):
        back_up(place_at(tmp_path), tmp_path / "all.tar")
    with pytest.raises(BadData, match="there is no backup"):
        restore(place_at(tmp_path), tmp_path / "all.tar")


@pytest.mark.all
def test_a_study_database_in_postgresql_is_dumped_and_restored(
    installed: Place, postgres_url: str, postgres_server: str, tmp_path: Path
) -> None:
    import psycopg

    sqlite_stores = stores_of(installed)
    here = Place(results=installed.results, services=installed.services, database=postgres_url)
    stores = stores_of(here)
    stores.studies.create_study(sqlite_stores.studies.study("planted"))
    stores.studies.save_dataset("planted", sqlite_stores.studies.dataset("planted"))
    for adapter in sqlite_stores.studies.adapters("planted"):
        stores.studies.save_adapter("planted", adapter)
    back_up(here, tmp_path / "all.tar")
    assert b"secret" not in (tmp_path / "all.tar").read_bytes()
    with pytest.raises(BadSettings, match="has tables already"):
        restore(Place(results=tmp_path / "r", services=tmp_path / "s", database=postgres_url), tmp_path / "all.tar")
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute("create database restored")
    try:
        there = Place(results=tmp_path / "r", services=tmp_path / "s", database=f"{postgres_server}/restored")
        restore(there, tmp_path / "all.tar")
        assert list(verify(["planted"], stores_of(there), live=None, repair=False)) == []
    finally:
        with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
            connection.execute("drop database restored with (force)")
