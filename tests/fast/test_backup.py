"""A whole installation in one file: copied while it is in use, restored where nothing is, refused where something is or differs."""

import gzip
import io
import json
import lzma
import os
import re
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from clusterlora.errors import BadData, BadSettings
from clusterlora.planning.training_groups import remaining_groups
from clusterlora.ports.stores import Stores
from clusterlora.stores.database_copy import copy_sqlite, refuse_unreadable_dump
from clusterlora.verify import verify
from clusterlora.wiring import from_environment
from deployments import backup as module
from deployments import restore as restore_module
from deployments.backup import Place, back_up
from deployments.restore import restore
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
    for name, tables in (("mlflow", ("runs", "webhooks", "secrets")), ("prefect", ("flow_run", "block_document", "configuration"))):
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


def left_at(place: Place) -> list[str]:
    return [path.name for folder in (place.results, place.services) if folder.is_dir() for path in folder.iterdir()]


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
    assert not list(remaining_groups(state_of(study, stores)))


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
        assert left_at(there) == []
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
    add_folder = module._add_folder

    def forget_and_add(*arguments: Any, **options: Any) -> None:
        stores.studies.forget_adapter(key)
        add_folder(*arguments, **options)

    monkeypatch.setattr(module, "_add_folder", forget_and_add)
    with pytest.raises(BadData, match=f"removed while they were copied, for example {key}"):
        back_up(installed, tmp_path / "all.tar")
    assert not list(tmp_path.glob("*.tar"))


def test_a_database_under_any_name_is_copied_once_and_restored(installed: Place, tmp_path: Path) -> None:
    (installed.results / "clusterlora.db").rename(installed.results / "mine.db")
    (installed.results / "mine.db.lock").touch()
    here = replace(installed, database=f"sqlite:///{installed.results / 'mine.db'}")
    written = back_up(here, tmp_path / "all.tar")
    assert not [name for name in written.files if "mine" in name]
    there = place_at(tmp_path / "there")
    there = replace(there, database=f"sqlite:///{there.results / 'mine.db'}")
    restore(there, tmp_path / "all.tar")
    assert {name for name, _, _ in stores_of(there).studies.studies()} == {"planted", "untrained"}


def shards_of(place: Place) -> tuple[str, ...]:
    """Let an installation have two more adapters, in a shard, and the folder of one that somebody asked for; return their keys."""
    stores = stores_of(place)
    unified = next(adapter for adapter in stores.studies.adapters("planted") if adapter.name == "unified")
    folder = stores.adapters.path(unified.key)
    assert folder is not None
    keys = ("aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb")
    stores.adapters.save_together(dict.fromkeys(keys, folder))
    added = [replace(unified, key=key, name=key, spec=replace(unified.spec, name=key, scope="group")) for key in keys]
    stores.studies.save_adapters("planted", added, {})
    assert stores.adapters.path(keys[0]) is not None
    return keys


def test_adapters_in_shards_are_in_it_and_a_lost_shard_is_told(installed: Place, tmp_path: Path) -> None:
    keys = shards_of(installed)
    written = back_up(installed, tmp_path / "all.tar")
    assert (written.n_adapters, written.in_shards, written.without_weights) == (5, 2, ())
    assert not [name for name in written.files if "/.split/" in name]
    assert restore(there := place_at(tmp_path / "there"), tmp_path / "all.tar") == written
    assert {key for key in stores_of(there).adapters.local_keys() if key in keys} == set(keys)
    assert list(verify(["planted"], stores_of(there), live=None, repair=False)) == []
    (file,) = (installed.results / ".adapters" / ".shards").glob("*.safetensors")
    file.unlink()
    assert back_up(installed, tmp_path / "less.tar").without_weights == keys


def test_a_backup_from_before_shards_is_restored(installed: Place, tmp_path: Path) -> None:
    back_up(installed, tmp_path / "all.tar")

    def as_before(manifest: Any) -> Any:
        return {name: value for name, value in manifest.items() if name != "in_shards"} | {"format": 1}

    restored = restore(there := place_at(tmp_path / "there"), rewritten(tmp_path / "all.tar", "before.tar", as_before))
    assert restored.n_adapters == 3
    assert list(verify(["planted"], stores_of(there), live=None, repair=False)) == []


def test_folders_and_files_behind_links_are_in_it_and_adapters_without_weights_are_told(installed: Place, tmp_path: Path) -> None:
    shutil.move(installed.results / ".adapters", tmp_path / "big")
    (installed.results / ".adapters").symlink_to(tmp_path / "big")
    shutil.move(installed.results / "planted" / "results" / "summary.md", tmp_path / "summary.md")
    (installed.results / "planted" / "results" / "summary.md").symlink_to(tmp_path / "summary.md")
    written = back_up(installed, tmp_path / "all.tar")
    assert (written.n_adapters, written.without_weights) == (3, ())
    restore(there := place_at(tmp_path / "there"), tmp_path / "all.tar")
    assert list(verify(["planted"], stores_of(there), live=None, repair=False)) == []
    assert (there.results / "planted" / "results" / "summary.md").read_text() == "unified wins"
    lost = stores_of(installed).studies.adapters("planted")[0].key
    shutil.rmtree(tmp_path / "big" / lost)
    assert back_up(installed, tmp_path / "less.tar").without_weights == (lost,)


@pytest.mark.parametrize(
    ("target", "problem"),
    [("nowhere", "is not there"), ("here/studies", "in which it is itself"), ("here/services", "is not copied as a file")],
)
def test_a_link_to_nothing_to_where_it_is_or_to_passwords_makes_no_backup(
    installed: Place, tmp_path: Path, target: str, problem: str
) -> None:
    (installed.results / "planted" / "odd").symlink_to(tmp_path / target)
    with pytest.raises(BadData, match=f"odd is a link to .*{problem}"):
        back_up(installed, tmp_path / "all.tar")
    assert not list(tmp_path.glob("*.tar"))


def rewritten(archive: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """Return a copy with another manifest."""
    changed = archive.with_name(name)
    with tarfile.open(archive) as source, tarfile.open(changed, "w") as target:
        for member in source.getmembers():
            opened = source.extractfile(member)
            assert opened is not None
            content = opened.read()
            if member.name == "manifest.json":
                content = json.dumps(change(json.loads(content))).encode()
                member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    return changed


def test_a_backup_that_does_not_fit_the_database_or_the_disk_leaves_nothing(
    installed: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (installed.results / "old.db").touch()
    back_up(installed, tmp_path / "all.tar")
    there = place_at(tmp_path / "there")
    other = rewritten(tmp_path / "all.tar", "postgresql.tar", lambda manifest: {**manifest, "database": "postgresql"})
    with pytest.raises(BadSettings, match="give it a postgresql URL"):
        restore(there, other)
    with pytest.raises(BadSettings, match=r"holds studies/old.db, and CLUSTERLORA_DATABASE_URL names that file"):
        restore(replace(there, database=f"sqlite:///{there.results / 'old.db'}"), tmp_path / "all.tar")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(BadData, match="free some space"):
            restore(there, tmp_path / "all.tar")
    assert left_at(there) == []
    restore(there, tmp_path / "all.tar")


def test_whatever_fails_while_it_is_put_in_place_is_taken_back_and_can_be_repeated(
    installed: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = back_up(installed, tmp_path / "all.tar", with_passwords=True)
    there, move = place_at(tmp_path / "there"), shutil.move
    fails_at = 0
    for fails_at in range(20):
        moved: list[Path] = []

        def break_off(source: Path, target: Path, fails_at: int = fails_at, moved: list[Path] = moved) -> None:
            if len(moved) == fails_at:
                raise KeyboardInterrupt
            move(source, target)
            moved.append(target)

        with monkeypatch.context() as patched:
            patched.setattr(restore_module.shutil, "move", break_off)
            patched.setattr(restore_module, "restore_database", refuse)
            with pytest.raises((KeyboardInterrupt, BadSettings)) as raised:
                restore(there, tmp_path / "all.tar")
        assert left_at(there) == []
        if raised.type is BadSettings:
            break
    assert fails_at > 5
    assert restore(there, tmp_path / "all.tar") == written


def refuse(*_: object) -> None:
    raise BadSettings("no")


def test_all_files_are_on_disk_before_the_study_database_that_speaks_of_them(
    installed: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(installed, tmp_path / "all.tar", with_passwords=True)
    there, put_database = place_at(tmp_path / "there"), restore_module.restore_database
    synced: set[int] = set()
    seen: dict[Path, bool] = {}

    def look(url: str, file: Path) -> None:
        for path in (path for folder in (there.results, there.services) for path in folder.rglob("*")):
            seen[path] = path.stat().st_ino in synced
        put_database(url, file)

    monkeypatch.setattr(os, "fsync", lambda file: synced.add(os.fstat(file).st_ino))
    monkeypatch.setattr(restore_module, "restore_database", look)
    restore(there, tmp_path / "all.tar")
    assert len(seen) > 10
    assert [str(path) for path, safe in seen.items() if not safe] == []


def test_a_restore_that_was_killed_is_told_by_the_next(installed: Place, tmp_path: Path) -> None:
    back_up(installed, tmp_path / "all.tar")
    there = place_at(tmp_path / "there")
    (there.services / ".restoring-x").mkdir(parents=True)
    with pytest.raises(BadSettings, match=r"restoring-x is of a restore that was cut off.*empty .*studies.* and restore again"):
        restore(there, tmp_path / "all.tar")
    shutil.rmtree(there.services)
    there.results.mkdir()
    (there.results / "clusterlora.db-wal").touch()
    with pytest.raises(BadSettings, match="db-wal is left from another database"):
        restore(there, tmp_path / "all.tar")


@pytest.mark.parametrize(
    "change",
    [
        lambda _: [],
        lambda _: {"format": 1},
        lambda manifest: {**manifest, "more": 1},
        lambda manifest: {**manifest, "database": "mysql"},
        lambda manifest: {**manifest, "files": dict.fromkeys(manifest["files"], 3)},
        lambda manifest: {**manifest, "files": {name: (digest, size + 1) for name, (digest, size) in manifest["files"].items()}},
        lambda manifest: {**manifest, "format": 3},
        lambda manifest: {**manifest, "in_shards": "many"},
    ],
)
def test_a_manifest_that_is_none_is_refused(small_backup: Path, tmp_path: Path, change: Callable[[Any], Any]) -> None:
    there = place_at(tmp_path / "there")
    with pytest.raises(BadData, match=re.escape("odd.tar")):
        restore(there, rewritten(small_backup, "odd.tar", change))
    assert left_at(there) == []


@pytest.fixture
def small_backup(tmp_path: Path) -> Path:
    """Return a backup of studies of which none was trained."""
    here = place_at(tmp_path / "here")
    stores_of(here).studies.studies()
    (here.results / "note.txt").write_text("a note")
    back_up(here, tmp_path / "all.tar")
    return tmp_path / "all.tar"


def odd_members() -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        link = tarfile.TarInfo("studies/odd")
        link.type, link.linkname = kind, "../../secrets"
        yield link, b""
    for name in ("../out.txt", "/tmp/out.txt", "studies/../../out.txt", "other/out.txt", "studies/.serving/api-keys", "studies//out.txt"):
        member = tarfile.TarInfo(name)
        member.size = 1
        yield member, b"x"


def test_links_and_names_that_no_backup_has_are_refused_before_anything_is_unpacked(small_backup: Path, tmp_path: Path) -> None:
    for number, (odd, content) in enumerate(odd_members()):
        file = tmp_path / f"odd-{number}.tar"
        with tarfile.open(small_backup) as source, tarfile.open(file, "w") as target:
            target.addfile(odd, io.BytesIO(content))
            for member in source.getmembers():
                target.addfile(member, source.extractfile(member))
        there = place_at(tmp_path / f"there-{number}")
        with pytest.raises(BadData, match=r"no plain file or under no name of a backup"):
            restore(there, file)
        assert not there.results.exists()


def test_an_archive_that_is_compressed_cut_or_something_else_is_refused_unread(small_backup: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive, Path("/dev/zero").open("rb") as zeros:
        member = tarfile.TarInfo("studies/big")
        member.size = 10_000_000
        archive.addfile(member, zeros)
    # Even a whole one: how large it becomes is not known before.
    (tmp_path / "whole.tar.gz").write_bytes(gzip.compress(small_backup.read_bytes()))
    (tmp_path / "bad.tar.xz").write_bytes(lzma.compress(small_backup.read_bytes())[:1000])
    (tmp_path / "text.tar").write_text("no archive at all, " * 100)
    (tmp_path / "empty.tar").touch()
    for name in ("bomb.tar.gz", "whole.tar.gz", "bad.tar.xz", "text.tar", "empty.tar"):
        with pytest.raises(BadData, match=f"{name} is no whole backup"):
            restore(place_at(tmp_path / "there"), tmp_path / name)
    assert not (tmp_path / "there").exists()


def test_services_inside_the_results_are_refused_as_their_passwords_would_be_results(installed: Place, tmp_path: Path) -> None:
    inside = replace(installed, services=installed.results / "services")
    for command in (back_up, restore):
        (tmp_path / "all.tar").unlink(missing_ok=True)
        if command is restore:
            (tmp_path / "all.tar").touch()
        with pytest.raises(BadSettings, match="move it out"):
            command(inside, tmp_path / "all.tar")


def test_tables_of_mlflow_and_prefect_whose_columns_are_named_as_secrets_are_emptied() -> None:
    from mlflow.store.db import base_sql_model
    from mlflow.store.model_registry.dbmodels import models as _registry
    from mlflow.store.tracking.dbmodels import models as _tracking
    from prefect.server.database.orm_models import Base

    named = re.compile(r"secret(?!_id)|password|credential|encrypted|token_hash|^token$|^url$|auth_config")
    assert _registry is not _tracking
    for metadata, emptied in ((base_sql_model.Base.metadata, module.MLFLOW_SECRETS), (Base.metadata, module.PREFECT_SECRETS)):
        secret = {table.name for table in metadata.tables.values() if any(named.search(column.name) for column in table.columns)}
        assert secret
        assert secret <= set(emptied)
        assert set(emptied) <= set(metadata.tables) | {"mcp_access_endpoints"}


def test_where_nothing_was_ever_run_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="nothing was ever run here"):
        back_up(place_at(tmp_path), tmp_path / "all.tar")
    with pytest.raises(BadData, match="there is no backup"):
        restore(place_at(tmp_path), tmp_path / "all.tar")


@pytest.mark.all
def test_a_study_database_in_postgresql_is_dumped_and_restored(
    installed: Place, postgres_url: str, postgres_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert b"tester:secret" not in (tmp_path / "all.tar").read_bytes()
    with pytest.raises(BadSettings, match="has tables already"):
        restore(Place(results=tmp_path / "r", services=tmp_path / "s", database=postgres_url), tmp_path / "all.tar")
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute("create database restored")
    try:
        there = Place(results=tmp_path / "r", services=tmp_path / "s", database=f"{postgres_server}/restored")
        with tarfile.open(tmp_path / "all.tar") as archive:
            (dump := tmp_path / "dump").write_bytes(archive.extractfile("database/studies").read())  # pyrefly: ignore[missing-attribute]
        refuse_unreadable_dump(there.database, dump)
        dump.write_bytes(dump.read_bytes()[:300])
        with pytest.raises(BadSettings, match="pg_restore refused"):
            refuse_unreadable_dump(there.database, dump)
        # What fails half-way leaves no table, and can be repeated.
        with monkeypatch.context() as patched:
            patched.setattr(restore_module, "refuse_unreadable_dump", lambda _url, dump: dump.write_bytes(dump.read_bytes()[:-3000]))
            with pytest.raises(BadSettings, match="pg_restore refused"):
                restore(there, tmp_path / "all.tar")
        assert left_at(there) == []
        with monkeypatch.context() as patched:
            patched.setenv("PATH", str(tmp_path))
            with pytest.raises(BadSettings, match="pg_restore is not installed"):
                restore(there, tmp_path / "all.tar")
        restore(there, tmp_path / "all.tar")
        assert list(verify(["planted"], stores_of(there), live=None, repair=False)) == []
    finally:
        with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
            connection.execute("drop database restored with (force)")
