"""Services shared by several programs: they are stopped when their last user ends, whoever started them.

Real programs and processes; servers and workers are stand-ins (tests/fixtures/stand_in.py).
"""

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from clusterlora import private_files
from deployments import local_services, processes, services_state
from deployments.service_specs import Addresses, free_port
from tests.fixtures.stand_in import Shell, runs_file, shells

SERVERS = ["prefect-server", "mlflow-server", "worker-gpu-0"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    # Its own lock and free ports: other tests on this machine start services, too.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    services_state.ServicesState(Addresses(free_port(), free_port())).save(private_files.make_folder(tmp_path / "stack"))
    return tmp_path / "stack"


def running(home: Path) -> set[str]:
    """Return the names of the running processes."""
    services = local_services.status(home)
    return set(services.running) if services else set()


@pytest.mark.whole
def test_of_two_studies_the_first_to_finish_stops_nothing_and_the_last_stops_the_services(home: Path) -> None:
    with shells(home, 2) as (one, two):
        assert one.does("up", user="study one")[0] == SERVERS
        assert two.does("up", user="study two")[0] == []
        stopped, printed = one.does("release")
        assert stopped == []
        assert printed == [f"the servers stay up for study two, pid {two.process.pid}"]
        assert running(home) == {*SERVERS}
        assert sorted(two.does("release")[0]) == sorted(SERVERS)
        assert running(home) == set()
        assert local_services.dead_processes(home) == ()


@pytest.mark.whole
@pytest.mark.parametrize("order", ["before", "beside", "again"])
def test_services_started_with_up_stay_up_when_a_study_ends(home: Path, order: str) -> None:
    """`up` runs before the study; beside a study that started the services; or before one that restarts a dead server (`again`)."""
    with shells(home, 2) as (study, person):
        if order == "beside":
            study.does("up", user="study one")
        person.does("up")
        if order == "again":
            processes.stop([local_services.status(home).running["prefect-server"]], patience_seconds=0)  # pyrefly: ignore[missing-attribute]
        if order != "beside":
            assert study.does("up", user="study one")[0] == (["prefect-server"] if order == "again" else [])
        assert study.does("release") == ([], [])
        assert running(home) == {*SERVERS}


@pytest.mark.whole
def test_an_interrupted_command_leaves_the_servers_up_for_its_running_study(home: Path) -> None:
    with shells(home, 2) as (one, two):
        one.does("up", user="study one")
        two.does("up", user="study two")
        assert one.does("release", keep=True)[0] == []
        assert two.does("release")[0] == []
        assert running(home) == {*SERVERS}


@pytest.mark.whole
def test_a_user_that_was_killed_does_not_keep_the_services_up(home: Path) -> None:
    with shells(home, 2) as (one, two):
        one.does("up", user="study one")
        two.does("up", user="study two")
        two.close()
        assert sorted(one.does("release")[0]) == sorted(SERVERS)


@pytest.mark.whole
def test_a_run_that_no_command_follows_keeps_the_servers_up_until_its_process_ends(home: Path, tmp_path: Path) -> None:
    argv = (sys.executable, "-c", "import time; time.sleep(600)", "prefect.flow_engine")
    process = processes.start(argv, env=os.environ, folder=tmp_path, log_file=tmp_path / "run.log")
    with shells(home, 1) as (one,):
        one.does("up", user="study one")
        run = {"id": "1", "name": "study · left", "infrastructure_pid": str(process.pid), "deployment_id": "x"}
        runs_file(home).write_text(json.dumps([run]))
        assert one.does("release") == ([], ["the servers stay up for study · left"])
        processes.stop([process])
        one.does("up", user="study one")
        assert sorted(one.does("release")[0]) == sorted(SERVERS)


@pytest.mark.whole
def test_a_program_that_starts_while_the_last_user_ends_gets_servers(home: Path) -> None:
    with shells(home, 2) as (one, two):
        one.does("up", user="study one")
        one.begins("release")
        two.begins("up", user="study two")
        one.ends()
        two.ends()
        assert running(home) == {*SERVERS}


@pytest.mark.whole
def test_workers_that_another_study_uses_are_not_stopped(home: Path) -> None:
    with shells(home, 2) as (one, two):
        one.does("up", user="study one", workers=2)
        started, printed = two.does("up", user="study two", workers=1)
        assert started == []
        assert printed == [f"worker-gpu-1 stays up for study one, pid {one.process.pid}"]
        assert "worker-gpu-1" in running(home)
        # Without other users the worker can be stopped, but only if fewer workers are requested.
        one.does("release")
        two.does("up", user="study two")
        assert "worker-gpu-1" in running(home)
        two.does("up", user="study two", workers=1)
        assert "worker-gpu-1" not in running(home)


@pytest.mark.whole
def test_the_number_of_workers_asked_for_holds_until_the_services_are_stopped(home: Path) -> None:
    with shells(home, 2) as (person, study):
        person.does("up", workers=2)
        processes.stop([local_services.status(home).running["worker-gpu-1"]], patience_seconds=0)  # pyrefly: ignore[missing-attribute]
        assert study.does("up", user="study one")[0] == ["worker-gpu-1"]
        local_services.down(home)
        assert study.does("up", user="study one")[0] == SERVERS


@pytest.mark.whole
def test_a_failed_start_registers_no_user_and_stops_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shells(home, 2) as (one, two):
        one.does("up", user="study one")
        monkeypatch.setattr(local_services.service_specs, "servers", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            local_services.up(home, user="study three", log=lambda _: None)
        assert local_services.other_users(home) == (f"study one, pid {one.process.pid}",)
        assert two.does("up", user="study two")[0] == []


@pytest.mark.whole
def test_down_stops_everything_and_stopped_processes_do_not_count_as_dead(home: Path) -> None:
    with shells(home, 1) as (one,):
        one.does("up", user="study one")
        processes.stop([local_services.status(home).running["prefect-server"]], patience_seconds=0)  # pyrefly: ignore[missing-attribute]
        assert local_services.dead_processes(home) == ("prefect-server",)
        assert not local_services.was_stopped(home)
        assert set(local_services.down(home)) == {"mlflow-server", "worker-gpu-0"}
        assert local_services.was_stopped(home)
        assert local_services.dead_processes(home) == ()
        # The study finds nothing to stop.
        assert one.does("release") == ([], [])


def test_who_waits_for_a_lock_says_so_once_and_who_does_not_says_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    waits = threading.Event()

    def on_wait() -> None:
        said.append("waits")
        waits.set()

    def wait() -> None:
        with services_state.file_lock(tmp_path / "a.lock", on_wait):
            said.append("goes on")

    other = threading.Thread(target=wait)
    with services_state.file_lock(tmp_path / "a.lock", lambda: said.append("first")):
        other.start()
        assert waits.wait(60)
        assert said == ["waits"]
    other.join(60)
    assert said == ["waits", "goes on"]


@pytest.mark.whole
def test_a_process_that_ends_during_down_does_not_count_as_dead(home: Path) -> None:
    with shells(home, 1) as (one,):
        one.does("up", user="study one")
        with services_state.locked(home):
            state = services_state.load(home)
            state.stopping = True
            state.save(home)
        processes.stop([state.running()["worker-gpu-0"]], patience_seconds=0)
        assert local_services.dead_processes(home) == ()
        assert local_services.was_stopped(home)
        # `up` recovers from an interrupted `down`.
        assert one.does("up", user="study one")[0] == ["worker-gpu-0"]
        assert not local_services.was_stopped(home)


@pytest.mark.whole
def test_a_command_keeps_the_servers_up_until_it_ends(home: Path) -> None:
    with shells(home, 1) as (one,):
        one.does("up", user="study one")
        assert local_services.acquire(home, "clusterlora train") is not None
        assert one.does("release")[1] == [f"the servers stay up for clusterlora train, pid {os.getpid()}"]
        assert sorted(local_services.release(home, log=lambda _: None)) == sorted(SERVERS)
        assert local_services.acquire(home, "clusterlora train") is None


@pytest.mark.whole
def test_each_shell_is_a_process_of_its_own(home: Path) -> None:
    """The other tests rely on it: users are identified by their process."""
    with shells(home, 2) as (one, two):
        assert isinstance(one, Shell)
        one.does("up", user="same")
        two.does("up", user="same")
        assert len(local_services.other_users(home)) == 2
