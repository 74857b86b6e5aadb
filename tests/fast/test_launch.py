"""A study is followed to its end, through crashes of its own run."""

import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES

from clusterlora.errors import ServiceDown
from clusterlora.settings import Study
from deployments import launch, private, processes
from deployments.books import Books
from deployments.observe import Run, Snapshot
from deployments.processes import Process
from deployments.services import Addresses, free_port
from deployments.stack import Stack
from tests.fixtures.stand_in import stand_ins


def ended(state: str) -> Snapshot:
    run = Run(uuid4(), "study", state, "the run's process is gone", open=False, running=False, seconds=1.0)
    return Snapshot(run, (run,), ended=True, completed=state == "Completed")


@pytest.mark.parametrize(
    ("ends", "launches"),
    [
        (["Completed"], 1),
        (["Failed", "Completed"], 1),
        (["Crashed", "Completed"], 2),
        (["Crashed", "Crashed", "GateRefused"], 3),
        (["Crashed", "Crashed", "Crashed", "Completed"], 3),
    ],
)
def test_a_study_whose_own_run_crashed_is_launched_again_and_what_failed_is_not(
    ends: Sequence[str], launches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Stack(tmp_path, Addresses(1, 2), {})
    # The server is in the books: nobody stopped it.
    Books(processes={"prefect-server": Process(1, "long ago")}).write(private.folder(tmp_path))
    states, launched, told = iter(ends), [], []

    def start(study: Study, _stack: Stack) -> Any:
        launched.append(study.name)
        return uuid4()

    monkeypatch.setattr(launch.local_stack, "up", lambda *_, **__: stack)
    monkeypatch.setattr(launch, "launch", start)
    monkeypatch.setattr(launch, "follow", lambda *_: ended(next(states)))
    found = launch.run_study(Study(name="x"), home=tmp_path, workers=None, stay=False, say=told.append, results=False)
    assert found.parent.state == ends[launches - 1]
    assert launched == ["x"] * launches
    assert sum("is launched again" in line for line in told) == launches - 1


def test_a_study_whose_stack_was_stopped_is_not_launched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.local_stack, "up", lambda *_, **__: Stack(tmp_path, Addresses(1, 2), {}))
    monkeypatch.setattr(launch, "launch", lambda *_: uuid4())
    monkeypatch.setattr(launch, "follow", lambda *_: ended("Crashed"))
    said: list[str] = []
    found = launch.run_study(Study(name="x"), home=tmp_path, workers=None, stay=False, say=said.append, results=False)
    assert found.parent.state == "Crashed"
    assert not any("launched again" in line for line in said)


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """Return a stack of stand-ins that this process uses."""
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Books(Addresses(free_port(), free_port())).write(private.folder(tmp_path / "stack"))
    with stand_ins():
        yield launch.local_stack.up(tmp_path / "stack", user="study mine", log=lambda _: None)
        launch.local_stack.down(tmp_path / "stack")


@pytest.mark.parametrize("part", ["prefect-server", "worker-gpu-0"])
def test_who_follows_a_study_says_what_died_of_the_stack_and_brings_it_back(stack: Stack, part: str) -> None:
    said: list[str] = []
    assert launch.bring_back(stack, "mine", said.append) is stack
    processes.stop([stack.running[part]], patience_seconds=0)
    again = launch.bring_back(stack, "mine", said.append)
    assert said == [f"{part} died and is started again", f"starting {part}"]
    assert set(again.running) == set(stack.running)
    assert again.addresses == stack.addresses


def test_who_follows_a_study_whose_servers_were_stopped_is_told_the_command_that_goes_on(stack: Stack) -> None:
    launch.local_stack.down(stack.home)
    with pytest.raises(ServiceDown, match=r"were stopped \(clusterlora down\).*Go on with: clusterlora study run --name mine$"):
        launch.bring_back(stack, "mine", lambda _: None)
    assert launch.local_stack.status(stack.home) is None


def test_who_follows_a_study_asks_a_lost_server_once_and_not_for_minutes(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's client would try seven times, with pauses of two minutes at the end."""
    looked: list[str] = []

    def look(*_: object) -> Snapshot:
        looked.append("looked")
        if len(looked) == 1:
            raise httpx.ConnectError("connection refused")
        assert PREFECT_CLIENT_MAX_RETRIES.value() == 0
        return ended("Completed")

    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.setenv(name, stack.environment()[name])
    monkeypatch.setattr(launch, "snapshot", look)
    monkeypatch.setattr(launch, "WATCH_SECONDS", 0)
    monkeypatch.setattr(launch, "connect", lambda _: nullcontext())
    assert launch.follow(uuid4(), "mine", stack).completed
    assert looked == ["looked"] * 2


def test_who_follows_a_study_goes_along_when_a_lost_servers_port_was_taken(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def look(client: Any, *_: object) -> Snapshot:
        asked.append(str(client.api_url))
        return ended("Completed")

    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "snapshot", look)
    processes.stop([stack.running["prefect-server"]], patience_seconds=0)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", stack.addresses.prefect_port))
        taken.listen()
        assert launch.follow(uuid4(), "mine", stack).completed
    now = launch.local_stack.status(stack.home)
    assert now is not None
    assert now.addresses != stack.addresses
    assert asked == [f"{now.addresses.prefect}/api/"]
