"""One stack, several programs: whoever started it, it is stopped only when nobody needs it, and not by one who leaves.

Real programs and real processes; servers and workers are stand-ins (tests/fixtures/stand_in.py).
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from deployments import books, private, processes, stack
from deployments.services import Addresses, free_port
from tests.fixtures.stand_in import Shell, runs_file, shells

SERVERS = ["prefect-server", "mlflow-server", "worker-gpu-0"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    # A lock of its own, so that it waits for no other stack of the machine, and ports that no other chooses.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    books.Books(Addresses(free_port(), free_port())).write(private.folder(tmp_path / "stack"))
    return tmp_path / "stack"


def runs(home: Path) -> set[str]:
    """Return what runs of the stack."""
    found = stack.status(home)
    return set(found.running) if found else set()


def test_of_two_studies_the_first_to_finish_stops_nothing_and_the_last_stops_all(home: Path) -> None:
    with shells(home, 2) as (one, two):
        assert one.does("up", user="study one")[0] == SERVERS
        assert two.does("up", user="study two")[0] == []
        stopped, said = one.does("leave")
        assert stopped == []
        assert said == [f"the servers stay up for study two, pid {two.process.pid}"]
        assert runs(home) == {*SERVERS}
        assert sorted(two.does("leave")[0]) == sorted(SERVERS)
        assert runs(home) == set()
        assert stack.died(home) == ()


@pytest.mark.parametrize("order", ["before", "beside", "again"])
def test_what_somebody_brought_up_stays_up_whoever_leaves(home: Path, order: str) -> None:
    """`before` and after one of its parts had to be restarted by a study; `beside` a study that had started it."""
    with shells(home, 2) as (study, person):
        if order == "beside":
            study.does("up", user="study one")
        person.does("up")
        if order == "again":
            processes.stop([stack.status(home).running["prefect-server"]], patience_seconds=0)  # pyright: ignore[reportOptionalMemberAccess]
        if order != "beside":
            assert study.does("up", user="study one")[0] == (["prefect-server"] if order == "again" else [])
        assert study.does("leave") == ([], [])
        assert runs(home) == {*SERVERS}


def test_who_is_interrupted_in_front_of_a_running_study_leaves_the_servers_to_it(home: Path) -> None:
    with shells(home, 2) as (one, two):
        one.does("up", user="study one")
        two.does("up", user="study two")
        assert one.does("leave", keep=True)[0] == []
        assert two.does("leave")[0] == []
        assert runs(home) == {*SERVERS}


def test_who_ended_without_a_word_keeps_nothing_up(home: Path) -> None:
    with shells(home, 2) as (one, two):
        one.does("up", user="study one")
        two.does("up", user="study two")
        two.close()
        assert sorted(one.does("leave")[0]) == sorted(SERVERS)


def test_a_study_that_nobody_follows_any_more_keeps_the_servers_up_as_long_as_its_process_lives(home: Path, tmp_path: Path) -> None:
    argv = (sys.executable, "-c", "import time; time.sleep(600)", "prefect.flow_engine")
    process = processes.start(argv, env=os.environ, folder=tmp_path, log_file=tmp_path / "run.log")
    with shells(home, 1) as (one,):
        one.does("up", user="study one")
        run = {"name": "study · left", "infrastructure_pid": str(process.pid), "deployment_id": "x"}
        runs_file(home).write_text(json.dumps([run]))
        assert one.does("leave") == ([], ["the servers stay up for study · left"])
        processes.stop([process])
        one.does("up", user="study one")
        assert sorted(one.does("leave")[0]) == sorted(SERVERS)


def test_somebody_who_comes_while_the_last_one_leaves_gets_servers(home: Path) -> None:
    with shells(home, 2) as (one, two):
        one.does("up", user="study one")
        one.begins("leave")
        two.begins("up", user="study two")
        one.ends()
        two.ends()
        assert runs(home) == {*SERVERS}


def test_no_worker_is_taken_from_another_study(home: Path) -> None:
    with shells(home, 2) as (one, two):
        one.does("up", user="study one", workers=2)
        started, said = two.does("up", user="study two", workers=1)
        assert started == []
        assert said == [f"worker-gpu-1 stays for study one, pid {one.process.pid}"]
        assert "worker-gpu-1" in runs(home)
        # Nobody is in the way of one who is alone, and who says nothing takes nothing.
        one.does("leave")
        two.does("up", user="study two")
        assert "worker-gpu-1" in runs(home)
        two.does("up", user="study two", workers=1)
        assert "worker-gpu-1" not in runs(home)


def test_a_start_that_fails_needs_nothing_and_stops_nothing_of_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shells(home, 2) as (one, two):
        one.does("up", user="study one")
        monkeypatch.setattr(stack.services, "servers", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            stack.up(home, user="study three", log=lambda _: None)
        assert stack.users(home) == (f"study one, pid {one.process.pid}",)
        assert two.does("up", user="study two")[0] == []


def test_down_stops_everything_and_is_told_from_dying(home: Path) -> None:
    with shells(home, 1) as (one,):
        one.does("up", user="study one")
        processes.stop([stack.status(home).running["prefect-server"]], patience_seconds=0)  # pyright: ignore[reportOptionalMemberAccess]
        assert stack.died(home) == ("prefect-server",)
        assert not stack.was_stopped(home)
        assert set(stack.down(home)) == {"mlflow-server", "worker-gpu-0"}
        assert stack.was_stopped(home)
        assert stack.died(home) == ()
        # Whoever used it finds nothing to stop.
        assert one.does("leave") == ([], [])


def test_what_ends_while_it_is_stopped_has_not_died(home: Path) -> None:
    with shells(home, 1) as (one,):
        one.does("up", user="study one")
        with books.locked(home):
            known = books.read(home)
            known.stopping = True
            known.write(home)
        processes.stop([known.running()["worker-gpu-0"]], patience_seconds=0)
        assert stack.died(home) == ()
        assert stack.was_stopped(home)
        # A `down` that was interrupted leaves nothing behind that `up` cannot mend.
        assert one.does("up", user="study one")[0] == ["worker-gpu-0"]
        assert not stack.was_stopped(home)


def test_a_command_that_works_needs_the_servers_until_it_ends(home: Path) -> None:
    with shells(home, 1) as (one,):
        one.does("up", user="study one")
        assert stack.join(home, "clusterlora train") is not None
        assert one.does("leave")[1] == [f"the servers stay up for clusterlora train, pid {os.getpid()}"]
        assert sorted(stack.leave(home, log=lambda _: None)) == sorted(SERVERS)
        assert stack.join(home, "clusterlora train") is None


def test_shells_are_programs_of_their_own(home: Path) -> None:
    """What the other tests stand on: users are told apart by their process."""
    with shells(home, 2) as (one, two):
        assert isinstance(one, Shell)
        one.does("up", user="same")
        two.does("up", user="same")
        assert len(stack.users(home)) == 2
