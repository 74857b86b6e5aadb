"""Backups and people who leave: which have the person is known, they are removed when asked, and a restored one forgets again.

The studies have compared nothing yet, so nothing is trained.
"""

import io
import json
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clusterlora.cli import main
from clusterlora.errors import BadData, BadSettings
from clusterlora.ports.stores import Stores
from clusterlora.private_files import make_home
from clusterlora.pseudonyms import KEY_FILE, pseudonym
from clusterlora.settings import Study
from clusterlora.stages.forget import backups_with, certificates
from clusterlora.stages.forgotten import UNFINISHED
from clusterlora.stages.prepare import prepare_study
from clusterlora.stores.departures import (
    BACKUPS,
    BACKUPS_OUTSIDE,
    DEPARTED,
    DEPARTED_OUTSIDE,
    TO_FORGET,
    KnownBackup,
    keep_key,
    known_backups,
    note_backup,
)
from clusterlora.values import Attempt
from clusterlora.wiring import from_environment, registry_from_environment
from deployments.backup import Place, back_up
from deployments.restore import restore
from tests.fast.test_forget import LEAVES, PEOPLE, KilledError, canaries_of, killed, leave, small_study, stage, write_people
from tests.fixtures.canaries import traces
from tests.fixtures.stages import LOG

WORDS = (LEAVES, *canaries_of(LEAVES))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Return where an installation is, to which the environment points."""
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "services"))
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "home"))
    (tmp_path / "services").mkdir()
    return place_at(tmp_path)


def place_at(folder: Path) -> Place:
    return Place(results=folder / "home", services=folder / "services", database=f"sqlite:///{folder / 'home' / 'clusterlora.db'}")


@pytest.fixture
def study(place: Place, tiny_base_folder: Path, tmp_path: Path) -> Study:
    """Return a study of five people that is prepared."""
    write_people(tmp_path / "people.jsonl", PEOPLE)
    study = small_study(tiny_base_folder, tmp_path / "people.jsonl")
    prepare_study(study, from_environment(), LOG, running=False)
    return study


@pytest.fixture
def stores(study: Study) -> Stores:
    assert study.name
    return from_environment()


def lose(place: Place) -> None:
    """Remove the results, as a broken disk does; the servers' folder is on another one."""
    shutil.rmtree(place.results)


def test_a_backup_that_has_the_person_is_named_and_on_demand_removed(
    stores: Stores, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("monday", "tuesday"):
        back_up(place, tmp_path / f"{name}.tar")
    (tmp_path / "tuesday.tar").rename(tmp_path / "elsewhere.tar")
    assert traces(tmp_path, *WORDS)
    assert main(["persona", "forget", LEAVES, "--dry-run"]) == 0
    assert f"backup {tmp_path / 'monday.tar'} of " in capsys.readouterr().out
    person = pseudonym(place.results, LEAVES)
    certificate = leave(stores, services=place.services)
    assert certificate.backups == ()
    (named,) = (one for one in certificate.left if "monday.tar" in one)
    assert "has the person: the same command with --remove-backups removes it" in named
    (away,) = (one for one in certificate.left if "tuesday.tar" in one)
    assert "where it is not any more, or not as it was" in away
    back_up(place, tmp_path / "friday.tar")

    # Nothing else has the person by now.
    assert main(["persona", "forget", "--digest", person, "--remove-backups"]) == 0
    assert f"backup {tmp_path / 'monday.tar'} removed" in capsys.readouterr().out
    assert {Path(one.file).name for one in known_backups(place.results / BACKUPS)} == {"tuesday.tar", "friday.tar"}
    assert (tmp_path / "friday.tar").is_file(), "it was made without the person"
    (tmp_path / "people.jsonl").unlink()
    assert traces(tmp_path, *WORDS) == ["elsewhere.tar"]
    assert "## Backups" in certificates(person, stores)[-1].with_suffix(".md").read_text()


def test_a_file_in_the_place_of_a_backup_and_backups_of_other_people_and_studies_stay(
    stores: Stores, study: Study, place: Place, tmp_path: Path
) -> None:
    back_up(place, tmp_path / "monday.tar")
    (tmp_path / "monday.tar").unlink()
    (tmp_path / "monday.tar").write_text("something else")
    person = pseudonym(place.results, LEAVES)
    assert len(backups_with(person, (), stores)) == len(backups_with(person, (study.name,), stores)) == 1
    assert backups_with(person, ("other",), stores) == ()
    assert backups_with(pseudonym(place.results, "nobody"), (), stores) == ()
    assert leave(stores, services=place.services, remove_backups=True).backups == ()
    assert (tmp_path / "monday.tar").read_text() == "something else"


@pytest.mark.parametrize("there", [None, "", "lost+found", ".DS_Store", "earlier", "photos"])
def test_what_is_remembered_in_the_servers_folder_is_private_and_it_stays_usable_for_them(there: str | None, tmp_path: Path) -> None:
    services = tmp_path / "servers"
    if there is not None:
        (services / there).mkdir(parents=True)
    if there == "earlier":
        # As an earlier version left it, which did not close what it made.
        (services / there).rename(services / BACKUPS_OUTSIDE)
    note_backup(services / BACKUPS_OUTSIDE, KnownBackup("monday.tar", "a" * 64, "2026-01-05T00:00:00", people=(), installation="b" * 64))
    (tmp_path / KEY_FILE).write_bytes(b"key")
    keep_key(tmp_path, services / DEPARTED_OUTSIDE)
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (services / BACKUPS_OUTSIDE, services / DEPARTED_OUTSIDE)} == {0o700}
    if there == "photos":
        with pytest.raises(BadSettings, match="holds other things, such as photos"):
            make_home(services)
    else:
        assert stat.S_IMODE(make_home(services).stat().st_mode) == 0o700


@pytest.fixture
def open_to_a_group() -> Iterator[None]:
    """As users of Debian and Fedora are whose group has nobody else."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_to_a_group")
@pytest.mark.parametrize("lost", ["results", "everything"])
def test_what_new_folders_of_a_user_are_open_to_does_not_matter(lost: str, place: Place, stores: Stores, tmp_path: Path) -> None:
    place.services.chmod(0o700)
    (place.results / "leaving" / "results").mkdir(parents=True, exist_ok=True)
    (place.results / "leaving" / "results" / "summary.md").write_text("a table")
    for number in range(2):
        # As an earlier version left them.
        for folder in (place.results / BACKUPS, place.results / DEPARTED, place.services / BACKUPS_OUTSIDE):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o775)
        back_up(place, tmp_path / f"{number}.tar")
    person = pseudonym(place.results, LEAVES, make_key=True)
    leave(stores, services=place.services)
    lose(place)
    if lost == "everything":
        shutil.rmtree(place.services)
    restore(place, tmp_path / "1.tar")
    assert (place.results / "leaving" / "results" / "summary.md").is_file()
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (place.results, *place.results.glob("**/")) if folder.is_dir()} == {0o700}
    assert (place.results / TO_FORGET).is_file() == (lost == "results"), "only the servers' folder knew who left"
    assert (person in (place.results / TO_FORGET).read_text()) if lost == "results" else True


def test_a_restored_backup_is_used_by_nothing_until_who_left_since_is_forgotten_again(
    stores: Stores, study: Study, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    back_up(place, tmp_path / "monday.tar")
    leave(stores, services=place.services)
    back_up(place, tmp_path / "friday.tar")
    lose(place)
    restore(place, tmp_path / "monday.tar")
    assert traces(place.results, *WORDS), "the backup has the person"
    for used in (from_environment, registry_from_environment, lambda: back_up(place, tmp_path / "sunday.tar")):
        with pytest.raises(BadSettings, match="forget them again first: clusterlora persona forget --restored"):
            used()
    assert main(["study", "list"]) == 1
    capsys.readouterr()
    assert main(["persona", "forget", "--restored"]) == 0
    assert "1 removal repeated of people who left after the backup was made" in capsys.readouterr().out
    assert traces(place.results, *WORDS) == []
    assert LEAVES not in prepare_study(study, from_environment(), LOG, running=False).ids, "the file of the data still has them"
    assert main(["persona", "forget", "--restored"]) == 1

    lose(place)
    restore(place, tmp_path / "friday.tar")
    assert from_environment().studies.dataset(study.name).ids == tuple(one for one in PEOPLE if one != LEAVES)


def test_the_command_restores_and_forgets_again_at_once(
    stores: Stores, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backup", str(tmp_path / "monday.tar")]) == 0
    leave(stores, services=place.services)
    lose(place)
    assert main(["restore", str(tmp_path / "monday.tar")]) == 0
    assert "1 removal repeated" in capsys.readouterr().out
    assert traces(place.results, *WORDS) == []


def test_what_left_is_told_by_a_later_backup_on_another_machine(stores: Stores, place: Place, tmp_path: Path) -> None:
    back_up(place, tmp_path / "monday.tar")
    leave(stores, services=place.services)
    back_up(place, tmp_path / "friday.tar")
    there = place_at(tmp_path / "there")
    restore(there, tmp_path / "friday.tar")
    assert not (there.results / TO_FORGET).exists()
    lose(there)
    restore(there, tmp_path / "monday.tar")
    assert (there.results / TO_FORGET).is_file()


def test_the_same_id_in_another_installation_or_in_a_study_that_was_not_asked_for_is_nobody_who_left(
    stores: Stores, study: Study, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = place_at(tmp_path / "other")
    monkeypatch.setenv("CLUSTERLORA_HOME", str(other.results))
    prepare_study(study, from_environment(), LOG, running=False)
    back_up(other, tmp_path / "others.tar")
    monkeypatch.setenv("CLUSTERLORA_HOME", str(place.results))
    prepare_study(replace(study, name="second"), stores, LOG, running=False)
    back_up(place, tmp_path / "monday.tar")
    leave(stores, services=place.services, only=(study.name,))

    lose(place)
    restore(place, tmp_path / "others.tar")
    assert LEAVES in from_environment().studies.dataset(study.name).ids
    lose(place)
    restore(place, tmp_path / "monday.tar")
    assert main(["persona", "forget", "--restored"]) == 0
    assert LEAVES not in from_environment().studies.dataset(study.name).ids
    assert LEAVES in from_environment().studies.dataset("second").ids


def test_a_removal_that_was_under_way_in_a_backup_is_finished_before_it_is_used(
    stores: Stores, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_erase", killed)
        with pytest.raises(KilledError):
            leave(stores, services=place.services)
    assert list((place.results / UNFINISHED).iterdir())
    back_up(place, tmp_path / "monday.tar")
    there = place_at(tmp_path / "there")
    restore(there, tmp_path / "monday.tar")
    monkeypatch.setenv("CLUSTERLORA_HOME", str(there.results))
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(there.services))
    with pytest.raises(BadSettings, match="forget them again first"):
        from_environment()
    assert main(["persona", "forget", "--restored"]) == 0
    assert traces(there.results, *WORDS) == []


def test_who_left_a_refresh_is_forgotten_again_in_a_backup_from_before_it(
    stores: Stores, study: Study, place: Place, tmp_path: Path
) -> None:
    back_up(place, tmp_path / "monday.tar")
    first = stores.studies.study(study.name)
    refresh = replace(first.refresh, root=study.name, of=study.name, number=1, champion="of-others", champion_method="unified")
    stores.studies.create_study(replace(first, name=f"{study.name}.r1", refresh=refresh))
    stores.studies.save_dataset(f"{study.name}.r1", stores.studies.dataset(study.name))
    leave(stores, services=place.services, only=(f"{study.name}.r1",))
    assert LEAVES not in stores.studies.dataset(study.name).ids
    lose(place)
    assert main(["restore", str(tmp_path / "monday.tar")]) == 0
    assert LEAVES not in from_environment().studies.dataset(study.name).ids


def test_what_ran_when_a_backup_was_made_does_not_hold_up_who_left(stores: Stores, study: Study, place: Place, tmp_path: Path) -> None:
    stores.studies.set_status(study.name, "running")
    stores.studies.open_attempt(study.name, Attempt(group="unified", number=1, micro_batch=2, state="running"))
    back_up(place, tmp_path / "monday.tar")
    stores.studies.set_status(study.name, "stopped")
    stores.studies.close_attempt(study.name, "unified", 1, state="lost", detail="")
    leave(stores, services=place.services)
    lose(place)
    assert main(["restore", str(tmp_path / "monday.tar")]) == 0
    restored = from_environment().studies
    assert LEAVES not in restored.dataset(study.name).ids
    assert [(name, status) for name, status, _ in restored.studies()] == [(study.name, "stopped")]


def test_a_backup_of_an_earlier_version_which_has_no_key_forgets_again_too(stores: Stores, study: Study, place: Place, tmp_path: Path):
    back_up(place, tmp_path / "with-key.tar")
    with tarfile.open(tmp_path / "with-key.tar") as new, tarfile.open(tmp_path / "monday.tar", "w") as old:
        for member in new.getmembers():
            data = opened.read() if (opened := new.extractfile(member)) else b""
            if member.name == f"studies/{KEY_FILE}":
                continue
            if member.name == "manifest.json":
                manifest = json.loads(data)
                del manifest["files"][f"studies/{KEY_FILE}"]
                data = json.dumps(manifest).encode()
                member.size = len(data)
            old.addfile(member, io.BytesIO(data))
    leave(stores, services=place.services)
    lose(place)
    assert main(["restore", str(tmp_path / "monday.tar")]) == 0
    assert LEAVES not in from_environment().studies.dataset(study.name).ids

    shutil.copy(next((place.services / DEPARTED_OUTSIDE).glob("*.key")), place.services / DEPARTED_OUTSIDE / "another.key")
    lose(place)
    with pytest.raises(BadSettings, match="is of an earlier version, and people left 2 installations"):
        restore(place, tmp_path / "monday.tar")


def test_a_backup_made_after_the_one_that_was_restored_is_known_and_one_that_cannot_be_removed_is_named(
    stores: Stores, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("monday", "tuesday"):
        back_up(place, tmp_path / f"{name}.tar")
    lose(place)
    restore(place, tmp_path / "monday.tar")
    unlink = Path.unlink

    def read_only(file: Path, **options: bool) -> None:
        if file.name == "monday.tar":
            raise PermissionError(13, "Permission denied")
        unlink(file, **options)

    monkeypatch.setattr(Path, "unlink", read_only)
    certificate = leave(from_environment(), services=place.services, remove_backups=True)
    assert certificate.backups == (str(tmp_path / "tuesday.tar"),)
    (named,) = (one for one in certificate.left if "monday.tar" in one)
    assert "cannot be removed (Permission denied): delete it" in named
    assert not (tmp_path / "tuesday.tar").exists()
    assert not list((place.results / UNFINISHED).glob("*.json"))


def test_a_backup_with_an_odd_record_of_who_left_is_refused(stores: Stores, place: Place, tmp_path: Path) -> None:
    (place.results / DEPARTED).mkdir()
    (place.results / DEPARTED / "odd.json").write_text(json.dumps({"person": 3}))
    back_up(place, tmp_path / "odd.tar")
    there = place_at(tmp_path / "there")
    with pytest.raises(BadData, match=r"odd\.tar: who left is not told"):
        restore(there, tmp_path / "odd.tar")
    assert not (there.results / "clusterlora.db").exists()
    with tarfile.open(tmp_path / "odd.tar") as archive:
        assert f"studies/{KEY_FILE}" in archive.getnames(), "a backup has the key by which its people are told"
