"""Database specifics: first opening, many processes, and a database that is unavailable."""

import json
import multiprocessing
import os
import sqlite3
from collections import Counter
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event

from clusterlora.data.load import load
from clusterlora.errors import BadSettings, ServiceDown
from clusterlora.method_settings import MergeSettings
from clusterlora.recipe import Recipe
from clusterlora.settings import DataSettings, Study, SyntheticSettings, prepared
from clusterlora.stores.database import Database
from clusterlora.stores.json_codec import plain, to_json
from clusterlora.stores.schema import REVISION, metadata
from clusterlora.stores.sql import SqlStudyStore
from clusterlora.values import AdapterComposition, AdapterSpec, Answer, Route, WeightedAdapter
from clusterlora.wiring import forget_what_can_be_read_again


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.all)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'made' / 'study.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


def answers(process: int, n: int) -> list[Answer]:
    return [Answer(f"stack-{process}", f"item-{i}", "p", "test", "text", (("nll", float(i)), ("rouge_l", 0.5))) for i in range(n)]


def open_and_write(url: str, process: int, everybody_is_here: Barrier) -> None:
    everybody_is_here.wait()
    store = SqlStudyStore(url)
    store.create_study(prepared(Study(name="shared"), "float32"))
    for start in range(0, 100, 20):
        store.save_answers("shared", answers(process, 100)[start : start + 20])
        # Everybody also writes the same rows, and reads.
        store.save_answers("shared", answers(99, 20))
        store.answers("shared", [f"stack-{process}"])


@pytest.mark.whole
def test_four_processes_open_and_fill_a_fresh_database_at_once(url: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    everybody_is_here = context.Barrier(4)
    processes = [context.Process(target=open_and_write, args=(url, k, everybody_is_here)) for k in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0, 0]
    store = SqlStudyStore(url)
    assert len(store.answers("shared")) == 4 * 100 + 20


def test_the_migrations_make_the_tables_the_code_uses(url: str) -> None:
    database = Database(url)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_last_migration_is_the_revision_the_code_needs() -> None:
    scripts = ScriptDirectory(str(Path(__file__).parents[2] / "clusterlora" / "stores" / "migrations"))
    assert scripts.get_heads() == [REVISION]


def test_a_database_of_a_later_version_is_refused(url: str) -> None:
    database = Database(url)
    with database.writing() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    with pytest.raises(BadSettings, match=r"revision 9999.*upgrade clusterlora"):
        Database(url)


@pytest.mark.whole
def test_twenty_thousand_answers_are_written_and_read_in_few_statements_and_transactions(url: str) -> None:
    store = SqlStudyStore(url)
    store.create_study(prepared(Study(name="large"), "float32"))
    counted: Counter[str] = Counter()

    def count_statement(*_: object) -> None:
        counted["statements"] += 1

    def count_commit(_: object) -> None:
        counted["transactions"] += 1

    listeners = (("before_cursor_execute", count_statement), ("commit", count_commit))
    for name, count in listeners:
        event.listen(sa.Engine, name, count)
    try:
        store.save_answers("large", answers(0, 20_000))
        assert len(store.answers("large")) == 20_000
    finally:
        for name, count in listeners:
            event.remove(sa.Engine, name, count)
    # Row by row it would take minutes.
    assert 0 < counted["transactions"] < 200
    assert counted["statements"] < 2_000


def test_readers_and_the_writer_do_not_wait_for_each_other_on_sqlite(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    database, store = Database(url), SqlStudyStore(url)
    with database.reading() as connection:
        assert connection.execute(sa.text("select count(*) from studies")).scalar() == 0
        store.create_study(prepared(Study(name="meanwhile"), "float32"))
        assert connection.execute(sa.text("select count(*) from studies")).scalar() == 0
    with database.writing() as connection:
        connection.execute(sa.text("delete from studies"))
        assert len(store.studies()) == 1


def test_a_failed_write_leaves_nothing(url: str) -> None:
    database = Database(url)

    def write_and_fail() -> None:
        with database.writing() as connection:
            connection.execute(sa.text("insert into studies values ('a', 's', 'c', '{}', null)"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    with database.reading() as connection:
        assert connection.execute(sa.text("select count(*) from studies")).scalar() == 0


def test_a_nul_in_an_answer_is_replaced_because_postgresql_keeps_none(url: str) -> None:
    store = SqlStudyStore(url)
    store.create_study(prepared(Study(name="nul"), "float32"))
    store.save_answers("nul", [Answer("s", "i", "p", "test", "a\x00b", ())])
    assert store.answers("nul")[0].text == "a\ufffdb"


@pytest.mark.parametrize("query", ["", "?password=hunter2"])
def test_a_database_that_does_not_answer_is_named_without_its_password(query: str) -> None:
    with pytest.raises(ServiceDown, match=r"postgresql\+psycopg://me.*127\.0\.0\.1:1/study.* does not answer") as refusal:
        SqlStudyStore(f"postgresql://me:hunter2@127.0.0.1:1/study{query}")
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("url", ["mysql://me:hunter2@host/study", "sqlite://", "sqlite:///:memory:", "no url hunter2"])
def test_an_unusable_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BadSettings, match="sqlite:///") as refusal:
        SqlStudyStore(url)
    assert "hunter2" not in str(refusal.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceDown, match="cannot be written"):
        SqlStudyStore(f"sqlite:///{tmp_path / 'file' / 'study.db'}")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("this is not a database, it is a note of some length" * 50)
    with pytest.raises(ServiceDown, match=r"study\.db is damaged: file is not a database; bring back a backup"):
        SqlStudyStore(f"sqlite:///{tmp_path / 'study.db'}")


@pytest.mark.parametrize(
    "damage",
    [
        "update studies set name = cast(x'ff' as text)",
        "update sqlite_master set name = cast(x'b6' as text), sql = cast(x'b6' as text) where name = 'studies'",
    ],
    ids=["a text", "the name of a table"],
)
def test_bytes_that_are_no_text_are_damage(tmp_path: Path, damage: str) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    SqlStudyStore(url).create_study(prepared(Study(name="mine"), "float32"))
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("pragma writable_schema = on")
        connection.execute(damage)
    connection.close()
    with pytest.raises(ServiceDown, match=r"study\.db is damaged: .*; bring back a backup"):
        SqlStudyStore(url).studies()


@pytest.mark.parametrize(
    ("free_blocks", "told"),
    [(2, "cannot be written, as the disk is full: .*; free some space"), (2**20, "does not answer: disk I/O error")],
)
def test_a_disk_error_without_free_space_is_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_blocks: int, told: str
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'study.db'}")
    disk = SimpleNamespace(f_bavail=free_blocks, f_frsize=4096, f_files=0, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda _folder: disk)

    @event.listens_for(database.engine, "connect", insert=True)
    def fail(_connection: sqlite3.Connection, _record: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(ServiceDown, match=rf"study\.db {told}"), database.reading():
        pass


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_removed_or_replaced_under_a_study_is_named_and_the_next_command_begins_anew(
    tmp_path: Path, *, replaced: bool
) -> None:
    url, study = f"sqlite:///{tmp_path / 'study.db'}", prepared(Study(name="mine"), "float32")
    store = SqlStudyStore(url)
    store.create_study(study)
    for file in tmp_path.glob("study.db*"):
        file.unlink()
    if replaced:
        sqlite3.connect(tmp_path / "study.db").close()
    for use in (lambda: store.studies(), lambda: store.save_answers("mine", answers(1, 1))):
        with pytest.raises(ServiceDown, match=r"study database .* has lost its tables: .* run the same command again"):
            use()
    anew = SqlStudyStore(url)
    assert anew.studies() == ()
    anew.create_study(study)


@pytest.mark.whole
def test_a_full_disk_is_told_as_one_and_nothing_is_lost(tmp_path: Path) -> None:
    store = SqlStudyStore(f"sqlite:///{tmp_path / 'study.db'}")
    store.create_study(prepared(Study(name="first"), "float32"))
    with sqlite3.connect(tmp_path / "study.db") as connection:
        n_pages = connection.execute("pragma page_count").fetchone()[0]

    @event.listens_for(store._database.engine, "connect")
    def no_more_room(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"pragma max_page_count = {n_pages}")

    store._database.engine.dispose()
    with pytest.raises(
        ServiceDown, match=r"study\.db cannot be written, as the disk is full: .*; free some space and run the same command"
    ):
        store.save_dataset("first", load(DataSettings(synthetic=SyntheticSettings(cluster_sizes=(40,)))))
    assert [name for name, *_ in SqlStudyStore(f"sqlite:///{tmp_path / 'study.db'}").studies()] == ["first"]


def test_a_study_of_revision_0005_reads_as_it_was_written(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("clusterlora.stores.database.REVISION", "0005")
        database = Database(url)
    spec = {"name": "residual-0000", "persona_ids": ["p"], "recipe": plain(Recipe()), "kind": "lora", "init": "warm", "underlay": "unified"}
    merged = {"parts": ["a", "b"], "merging": plain(MergeSettings()), "described": True, "imported": None}
    stack = {"layers": [{"adapter": "unified", "weight": 1.0}, {"adapter": "residual-0000", "weight": 0.25}], "shots": 3, "described": True}
    adapter = {"key": "k", "name": "residual-0000", "spec": json.dumps(spec | merged), "steps": 1, "train_tokens": 2, "seconds": 3.0}
    answer = {"id": "a", "study": "s", "stack_key": "c", "persona_id": "p", "item_id": "i", "split": "test", "text": "hello"}
    with database.writing() as connection:
        for table, row in (
            ("studies", {"name": "s", "status": "finished", "created": "", "settings": to_json(Study(name="s"))}),
            ("adapters", adapter | {"n_bytes": 4}),
            ("study_adapters", {"study": "s", "key": "k"}),
            ("routes", {"study": "s", "method": "hybrid", "persona_id": "p", "seed": 0, "stack": json.dumps(stack)}),
            ("answers", answer),
        ):
            names = ", ".join(row)
            connection.execute(sa.text(f"insert into {table} ({names}) values ({', '.join(':' + name for name in row)})"), row)
    store = SqlStudyStore(url)
    read = store.adapters("s")[0].spec
    assert (read.init_from, read.frozen_adapter, read.merge_of, read.persona_in_prompt) == ("warm", "unified", ("a", "b"), True)
    assert (read.scope, read.folder) == ("person", "residuals")
    composition = AdapterComposition((WeightedAdapter("unified"), WeightedAdapter("residual-0000", 0.25)), 3, persona_in_prompt=True)
    assert store.routes("s") == (Route("hybrid", "p", composition),)
    assert store.answers("s", ["c"]) == (Answer("c", "i", "p", "test", "hello", ()),)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "persona_ids", "fields"),
    [
        ("unified", ("p", "q"), {"scope": "everybody"}),
        ("unified.s2", ("p", "q"), {"scope": "everybody", "seed": 2, "variant_of": "unified"}),
        ("cluster-03", ("p",), {"scope": "cluster", "cluster": 3, "folder": "lora_clusters"}),
        (
            "heldout-cluster-10+warm-start.s1",
            ("p",),
            {"scope": "cluster", "cluster": 10, "folder": "held_out", "rung": "warm-start", "seed": 1, "variant_of": "heldout-cluster-10"},
        ),
        ("random-00", ("p", "q"), {"scope": "cluster", "cluster": 0, "folder": "random_clusters"}),
        ("persona-0007", ("p",), {"scope": "person", "folder": "personas"}),
        ("persona-style-00", ("p", "q"), {"scope": "group"}),
    ],
)
def test_what_the_names_of_stored_adapters_meant_is_in_fields_from_revision_0009(
    url: str, monkeypatch: pytest.MonkeyPatch, name: str, persona_ids: tuple[str, ...], fields: dict[str, Any]
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("clusterlora.stores.database.REVISION", "0008")
        database = Database(url)
    spec = {"name": name, "persona_ids": list(persona_ids), "recipe": plain(Recipe())}
    row = {"key": "k", "name": name, "spec": json.dumps(spec), "steps": 1, "train_tokens": 2, "seconds": 3.0, "n_bytes": 4}
    with database.writing() as connection:
        connection.execute(sa.text(f"insert into adapters ({', '.join(row)}) values ({', '.join(':' + name for name in row)})"), row)
    adapter = SqlStudyStore(url).adapter("k")
    assert adapter is not None
    assert adapter.spec == AdapterSpec(name=name, persona_ids=persona_ids, recipe=Recipe(), **fields)


def test_what_a_process_keeps_of_a_study_is_read_again_after_it_is_dropped(url: str) -> None:
    store = SqlStudyStore(url)
    store.create_study(prepared(Study(name="kept"), "float32"))
    settings = DataSettings(train=2, val=1, test=1, personas=3, synthetic=SyntheticSettings(cluster_sizes=(2, 1), dialogues=4))
    store.save_dataset("kept", load(settings))
    first = store.dataset("kept")
    assert store.dataset("kept") is first
    forget_what_can_be_read_again()
    again = store.dataset("kept")
    assert again is not first
    assert again == first
