"""`persona forget` beyond one study: what derives from it, other removals, studies that were not asked for, weights from elsewhere.

The studies have compared nothing yet, so nothing is trained.
"""

import fcntl
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from clusterlora.cli import main
from clusterlora.errors import BadData, BadSettings, UnknownName
from clusterlora.metadata import ImportedAdapters, Regrouping, WatchedFile, WatchedFiles
from clusterlora.planning.null_studies import null_studies
from clusterlora.ports.stores import Stores
from clusterlora.pseudonyms import pseudonym
from clusterlora.settings import Study
from clusterlora.stages.forget import certificates, forget, read_certificate
from clusterlora.stages.forget_plan import id_of, plan_removal
from clusterlora.stages.forgotten import UNFINISHED
from clusterlora.stages.imported import OlderOutputs, import_outputs
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.privacy import canary_copy
from clusterlora.stores.server_databases import purge_prefect
from clusterlora.values import AdapterSpec, Clustering, TrainedAdapter
from clusterlora.wiring import from_environment
from tests.fast.test_forget import LEAVES, PEOPLE, KilledError, killed, leave, small_study, stage, write_people
from tests.fixtures.canaries import traces
from tests.fixtures.stages import LOG


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "home"))
    return from_environment()


@pytest.fixture
def study(stores: Stores, tiny_base_folder: Path, tmp_path: Path) -> Study:
    """Return the settings of a study of five people that is prepared and grouped, the second person alone in the first group."""
    write_people(tmp_path / "people.jsonl", PEOPLE)
    study = small_study(tiny_base_folder, tmp_path / "people.jsonl")
    study = replace(study, clustering=replace(study.clustering, sizes=(1, 4)))
    prepare_study(study, stores, LOG, running=False)
    stores.studies.save_clustering(study.name, Clustering("given", ((LEAVES,), (PEOPLE[0], PEOPLE[2]), tuple(PEOPLE[3:]))))
    return study


def also(study: Study, name: str, stores: Stores) -> Study:
    """Prepare another study of the same people."""
    other = replace(study, name=name)
    prepare_study(other, stores, LOG, running=False)
    return other


def learned(stores: Stores, study: str, key: str, *, weights: str = "5" * 64, people: tuple[str, ...] = tuple(PEOPLE)) -> None:
    """Record an adapter of a study, without weights."""
    spec = AdapterSpec(name="unified", persona_ids=people, recipe=stores.studies.study(study).recipe)
    stores.studies.save_adapter(study, TrainedAdapter(key, "unified", spec, 1, 1, 1.0, 1.0, 1.0, 1, weights_sha256=weights))


def has(stores: Stores, study: str, person: str = LEAVES) -> bool:
    return id_of(pseudonym(stores.home, person, make_key=True), study, stores) is not None


@pytest.mark.whole
def test_who_left_comes_back_with_no_study_that_reads_the_file_anew(study: Study, stores: Stores, caplog: pytest.LogCaptureFixture) -> None:
    before = also(study, "before", stores)
    leave(stores, only=("leaving",))
    assert prepare_study(study, stores, LOG, running=False) == stores.studies.dataset("leaving"), "sizes are those of before"
    for derived in (replace(study, name="leaving-average"), canary_copy("leaving", 2, stores), replace(study, name="mine")):
        caplog.clear()
        assert LEAVES not in prepare_study(derived, stores, LOG, running=False).ids
        assert "1 persona, forgotten here" in caplog.text
        assert prepare_study(derived, stores, LOG, running=False) == stores.studies.dataset(derived.name), "again it is the same"
    assert LEAVES in prepare_study(before, stores, LOG, running=False).ids, "it was not asked for and stays as it is"
    with pytest.raises(BadData, match="1 persona of the data left"):
        import_outputs(replace(study, name="imported"), OlderOutputs(clusters=stores.home), stores, LOG)


@pytest.mark.whole
def test_a_study_of_exchanged_dialogues_is_removed_whole_and_made_again_without_the_person(seven: Study, stores: Stores) -> None:
    seven = replace(seven, clustering=replace(seven.clustering, sizes=None))
    (null,) = null_studies(seven, 1)
    said = [d.turns[-1].text for d in prepare_study(seven, stores, LOG, running=False).by_id()["persona_002"].dialogues]
    exchanged = prepare_study(null, stores, LOG)
    assert any(d.id.startswith("persona_002/") for p in exchanged.personas if p.id != "persona_002" for d in p.dialogues)
    stores.studies.set_status(null.name, "finished")
    learned(stores, null.name, "abcd", people=("persona_001", "persona_002"))
    file = forget(pseudonym(stores.home, "persona_002", make_key=True), stores, LOG)
    assert [one.study for one in read_certificate(file).studies if one.whole] == [null.name]
    assert "the whole study is removed" in file.with_suffix(".md").read_text()
    with pytest.raises(UnknownName):
        stores.studies.study(null.name)
    assert stores.studies.adapter("abcd") is None
    assert traces(stores.home, "persona_002", *said) == []
    again = prepare_study(null, stores, LOG, running=False)
    assert len(again.personas) == 6
    assert not any("persona_002" in (p.id, d.id.partition("/")[0]) for p in again.personas for d in p.dialogues)


@pytest.mark.whole
def test_one_removal_at_a_time_and_an_interrupted_one_is_finished_first(
    study: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    also(study, "second", stores)
    with (stores.home / stage.LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BadSettings, match="persona forget` is running here"):
            leave(stores)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_erase", killed)
        with pytest.raises(KilledError):
            leave(stores, only=("leaving",))
    person = pseudonym(stores.home, LEAVES)
    with pytest.raises(BadSettings, match=f"forget --digest {person} --study leaving"):
        forget(pseudonym(stores.home, PEOPLE[3]), stores, LOG)
    stores.studies.set_status("second", "running")
    scratch = stores.adapters.scratch("ffff")
    with pytest.raises(BadSettings, match="a study is running"):
        leave(stores, only=("leaving",))
    assert scratch.is_dir()
    stores.studies.set_status("second", "created")
    leave(stores)
    assert not scratch.exists(), "a checkpoint may be of an adapter that nobody has recorded"
    assert not has(stores, "leaving")
    assert not has(stores, "second"), "what the interrupted command was not asked for goes after it"
    assert [[one.study for one in read_certificate(file).studies] for file in certificates(person, stores)] == [["leaving"], ["second"]]
    assert not list((stores.home / UNFINISHED).iterdir())


def test_no_certificate_where_somebody_wrote_the_person_again(study: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = stores.studies.dataset(study.name)
    monkeypatch.setattr(stage, "track_again", lambda *_: stores.studies.forget_data(study.name, dataset, None, ()))
    with pytest.raises(BadData, match="study leaving has the person again"):
        leave(stores)
    assert not certificates(pseudonym(stores.home, LEAVES), stores)
    monkeypatch.undo()
    leave(from_environment({"CLUSTERLORA_HOME": str(stores.home)}))
    assert not has(stores, study.name)


@pytest.mark.whole
def test_what_other_studies_still_have_is_named_and_not_called_removed(study: Study, stores: Stores, tiny_base_folder: Path) -> None:
    also(study, "second", stores)
    learned(stores, "leaving", "aaaa")
    learned(stores, "second", "aaaa")
    learned(stores, "leaving", "bbbb", weights="6" * 64)
    write_people(stores.home / "others.jsonl", [one for one in PEOPLE if one != LEAVES])
    prepare_study(replace(small_study(tiny_base_folder, stores.home / "others.jsonl"), name="importing"), stores, LOG, running=False)
    learned(stores, "importing", "cccc", weights="6" * 64, people=(PEOPLE[0],))
    certificate = leave(stores, only=("leaving",))
    (done,) = certificate.studies
    assert {one.key: one.still_in for one in done.removed} == {"aaaa": ("second",), "bbbb": ("importing",)}
    assert any("study second still has the person and the weights of unified" in one for one in certificate.left)
    assert any("study importing still has the weights of unified" in one for one in certificate.left)
    page = certificates(certificate.person, stores)[-1].with_suffix(".md").read_text()
    assert page.index("Taken from this study; other studies have the same weights") < page.index("`aaaa`")
    assert stores.studies.adapter("aaaa") is not None
    assert stores.studies.adapter("bbbb") is None


def test_the_numbers_of_imported_adapters_move_with_the_clusters_also_after_an_interruption(
    study: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.studies.save_metadata(study.name, ImportedAdapters(weights_by_cluster=((0, "hers"), (1, "second"), (2, "third"))))
    moved = ((LEAVES, 0, 1), (PEOPLE[0], 1, 0), (PEOPLE[3], 2, 1))
    stores.studies.save_metadata(
        study.name, Regrouping(moved=moved, n_personas=5, anew=False, outdated=((LEAVES, ("1",)), (PEOPLE[3], ("2",))))
    )
    stores.studies.save_metadata(study.name, WatchedFiles((WatchedFile("people.jsonl", "0" * 64),)))
    with monkeypatch.context() as patch:
        patch.setattr(type(stores.studies), "forget_data", killed)
        with pytest.raises(KilledError):
            leave(stores)
    leave(stores)
    assert stores.studies.metadata(study.name, ImportedAdapters) == ImportedAdapters(weights_by_cluster=((0, "second"), (1, "third")))
    assert stores.studies.metadata(study.name, Regrouping) == Regrouping(
        moved=((PEOPLE[3], 1, 0),), n_personas=4, anew=False, outdated=((PEOPLE[3], ("2",)),)
    )
    assert stores.studies.metadata(study.name, WatchedFiles) is not None, "the file is not refreshed from again"


def test_an_id_that_is_no_text_and_a_digest_in_capitals_are_understood(
    study: Study, stores: Stores, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["persona", "forget", "\udcff", "--dry-run"]) == 1
    assert "is no UTF-8 text" in capsys.readouterr().err
    assert main(["persona", "forget", "--digest", "abc", "--dry-run"]) == 1
    assert "is no digest of 64" in capsys.readouterr().err
    assert main(["persona", "forget", "--digest", pseudonym(stores.home, LEAVES, make_key=True).upper(), "--dry-run"]) == 0
    assert f"study {study.name}: " in capsys.readouterr().out
    assert plan_removal(pseudonym(stores.home, LEAVES), stores).studies[0].study == study.name


def test_prefect_keeps_the_runs_of_studies_whose_names_are_alike(tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    columns = {
        "flow_run": "id, name, tags, parent_task_run_id",
        "task_run": "id, flow_run_id",
        "event_resources": "event_id, resource_id",
        "events": "id",
        "automation_event_follower": "follower",
        "automation_bucket": "last_event",
        "composite_trigger_child_firing": "child_firing",
        "task_run_state": "task_run_id",
        "flow_run_input": "flow_run_id",
        "flow_run_state": "flow_run_id",
        **dict.fromkeys(("artifact", "artifact_collection", "log"), "flow_run_id, task_run_id"),
    }
    alike = ("a_b", "axb", "a_b2", "A_B")
    with closing(sqlite3.connect(tmp_path / "prefect" / "prefect.db")) as database:
        for table, names in columns.items():
            database.execute(f"CREATE TABLE {table} ({names})")
        for name in alike:
            database.execute("INSERT INTO flow_run VALUES (?, ?, '[]', NULL)", (name, f"compare · {name}"))
            database.execute("INSERT INTO automation_bucket VALUES (?)", (f'{{"prefect.resource.id":"prefect.tag.study:{name}"}}',))
        database.commit()
        assert purge_prefect(tmp_path, ["a_b"])
        assert [one for (one,) in database.execute("SELECT id FROM flow_run")] == list(alike[1:])
        assert [one for (one,) in database.execute("SELECT last_event FROM automation_bucket")] == [
            f'{{"prefect.resource.id":"prefect.tag.study:{name}"}}' for name in alike[1:]
        ]
