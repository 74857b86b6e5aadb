"""Folders and files of the local services are accessible to their owner only."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import clusterlora
from clusterlora import private_files
from clusterlora.cli import main
from clusterlora.errors import BadSettings, UnknownName
from clusterlora.wiring import from_environment
from deployments import local_services, passwords, processes, service_specs


@pytest.fixture(autouse=True)
def others_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a shell that leaves files readable by everybody."""
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("before", [None, 0o755, 0o700])
def test_a_private_folder_is_inaccessible_to_other_users(tmp_path: Path, before: int | None) -> None:
    if before is not None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home").chmod(before)
    assert mode(private_files.make_folder(tmp_path / "home")) == 0o700


@pytest.mark.parametrize("shared", [0o777, 0o1777, 0o770, 0o722])
@pytest.mark.parametrize("which", ["stack", "studies"])
def test_services_do_not_start_in_a_folder_that_others_can_write_to(tmp_path: Path, shared: int, which: str) -> None:
    (tmp_path / which).mkdir()
    (tmp_path / which).chmod(shared)
    with pytest.raises(BadSettings, match=f"other users may write to {tmp_path / which} .*: chmod go-w {tmp_path / which}"):
        local_services.up(tmp_path / "stack", log=lambda _: None)
    assert mode(tmp_path / which) == shared
    assert local_services.status(tmp_path / "stack") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_services_do_not_start_in_another_users_folder(tmp_path: Path) -> None:
    (tmp_path / "stack").mkdir()
    os.chown(tmp_path / "stack", 65534, 65534)
    with pytest.raises(BadSettings, match="belongs to user 65534, not to you"):
        local_services.up(tmp_path / "stack", log=lambda _: None)


def test_files_of_a_started_process_are_inaccessible_to_other_users(tmp_path: Path) -> None:
    script = f"from pathlib import Path; Path({str(tmp_path / 'made')!r}).mkdir(); Path({str(tmp_path / 'made' / 'x')!r}).write_text('x')"
    process = processes.start(("python3", "-c", script), env=os.environ, folder=tmp_path, log_file=tmp_path / "logs" / "x.log")
    while processes.alive(process):
        time.sleep(0.05)
    assert processes.last_lines(tmp_path / "logs" / "x.log") == "(no output)"
    written = [tmp_path / "made", tmp_path / "made" / "x", tmp_path / "logs", tmp_path / "logs" / "x.log"]
    assert [mode(path) & 0o077 for path in written] == [0] * len(written)


def test_passwords_and_service_state_are_inaccessible_to_other_users(tmp_path: Path) -> None:
    passwords.load_or_create(tmp_path / "home")
    passwords.create_login_token(tmp_path / "home")
    assert local_services.release(tmp_path / "home", log=lambda _: None) == ()
    assert not [path for path in (tmp_path / "home").rglob("*") if mode(path) & 0o077]


def test_a_log_that_is_a_link_to_another_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        private_files.open_append(tmp_path / "log")


def test_the_study_database_is_inaccessible_to_other_users(tmp_path: Path) -> None:
    stores = from_environment(
        {"CLUSTERLORA_HOME": str(tmp_path / "fresh"), "CLUSTERLORA_DATABASE_URL": f"sqlite:///{tmp_path / 'studies.db'}"}
    )
    assert stores.studies.studies() == ()
    assert mode(tmp_path / "fresh") == 0o700
    assert {mode(file) for file in tmp_path.glob("studies.db*")} == {0o600}


def test_a_variable_that_is_set_to_nothing_is_as_one_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stores = from_environment({"CLUSTERLORA_HOME": "", "CLUSTERLORA_DATABASE_URL": ""})
    assert stores.studies.studies() == ()
    assert stores.home == tmp_path / "studies"
    assert (tmp_path / "studies" / "clusterlora.db").is_file()


def test_a_notebook_and_a_served_folder_take_a_folder_that_is_set_to_nothing_as_not_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "studies").mkdir(parents=True)
    (tmp_path / "here" / "notes.txt").touch()
    (tmp_path / "here").chmod(0o700)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CLUSTERLORA_HOME", "")
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "stack"))
    monkeypatch.setattr(service_specs, "CHECKOUT", tmp_path / "here")
    with pytest.raises(UnknownName, match="unknown study 'demo'"):
        clusterlora.Study("demo")
    assert (tmp_path / "here" / "studies" / "clusterlora.db").is_file()
    keys: list[Path] = []

    def refuse(file: Path) -> None:
        keys.append(file)
        raise BadSettings("no key today")

    monkeypatch.setattr("clusterlora.serving.keys.load_or_create_keys", refuse)
    monkeypatch.setattr("clusterlora.serving.server.listen", lambda *_, **__: None)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "routes.json").write_text("{}")
    assert main(["serve", str(tmp_path / "exported")]) == 1
    assert keys == [tmp_path / "here" / "studies" / ".serving" / "api-keys"]
    assert {file.name for file in (tmp_path / "here").iterdir()} == {"studies", "notes.txt"}


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "stack").touch()
    for path in (tmp_path / "stack", tmp_path / "stack" / "below"):
        with pytest.raises(BadSettings, match=f"{path} cannot be a folder"):
            private_files.make_folder(path)


def test_nobody_keeps_others_from_starting_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    machine_folder = local_services._machine_folder
    assert machine_folder(tmp_path) == tmp_path / "runtime" / "clusterlora"
    (tmp_path / "taken").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "taken"))
    assert machine_folder(tmp_path) == tmp_path / "me" / ".cache" / "clusterlora-locks"
    monkeypatch.setenv("HOME", str(tmp_path / "taken"))
    assert machine_folder(tmp_path) == tmp_path, "of its own home at least"


def test_results_are_closed_to_other_users_without_servers_too_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies").chmod(0o755)
    caplog.set_level("INFO")
    for _ in range(2):
        assert from_environment({"CLUSTERLORA_HOME": str(tmp_path / "studies")}).studies.studies() == ()
    assert mode(tmp_path / "studies") == 0o700
    assert [record.getMessage() for record in caplog.records if record.name == "clusterlora.private_files"] == [
        f"{tmp_path / 'studies'} is closed to other users (its mode was 755): it holds what people said"
    ]


def test_a_folder_that_holds_other_things_is_refused_rather_than_closed_to_those_who_use_it(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "lost+found").mkdir(parents=True)
    (site / ".profile").touch()
    site.chmod(0o755)
    assert mode(private_files.make_home(site)) == 0o700, "a new disk, or a new user's folder"
    (site / "web").mkdir()
    site.chmod(0o755)
    for use in (
        lambda: from_environment({"CLUSTERLORA_HOME": str(site)}),
        lambda: local_services.up(site, log=lambda _: None),
        lambda: private_files.make_home(site),
    ):
        with pytest.raises(BadSettings, match=rf"{site} is open to other users \(mode 755\) and holds other things, such as web, so"):
            use()
    assert mode(site) == 0o755
    assert {entry.name for entry in site.iterdir()} == {"lost+found", ".profile", "web"}
    site.chmod(0o700)
    assert from_environment({"CLUSTERLORA_HOME": str(site)}).studies.studies() == ()
    site.chmod(0o755)
    private_files.make_home(site)
    assert mode(site) == 0o700, "it holds results"


def test_results_are_not_kept_in_a_folder_that_others_can_write_to(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies").chmod(0o777)
    with pytest.raises(BadSettings, match=r"other users may write to .*: chmod go-w"):
        from_environment({"CLUSTERLORA_HOME": str(tmp_path / "studies")})
    assert list((tmp_path / "studies").iterdir()) == []


@pytest.mark.parametrize("variable", ["CLUSTERLORA_HOME", "CLUSTERLORA_STACK_HOME"])
@pytest.mark.parametrize("kind", ["loop", "file"])
def test_a_home_that_can_be_no_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, kind: str
) -> None:
    odd = tmp_path / "odd"
    if kind == "loop":
        odd.symlink_to(odd)
    else:
        odd.touch()
    monkeypatch.setenv(variable, str(odd))
    assert main(["study", "list"] if variable == "CLUSTERLORA_HOME" else ["up"]) == 1
    assert f"error: {odd} cannot be a folder, as it, or a part of its path, is a file or a broken link" in capsys.readouterr().err
