"""Following a study to its end, through crashes of its own run and of the servers."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES

from clusterlora import private_files
from clusterlora.errors import ServiceDown
from clusterlora.metadata import MeanTokens, Probe, Rates, Workers
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.settings import Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.prepare import prepare_study
from clusterlora.values import Criterion, Verdict
from deployments import expectation, launch, processes
from deployments.local_services import LocalServices
from deployments.prefect_client import RunSnapshot, StudySnapshot
from deployments.processes import Process
from deployments.service_specs import Addresses, free_port
from deployments.services_state import ServicesState
from tests.fixtures.stand_in import stand_ins


def ended(state: str) -> StudySnapshot:
    run = RunSnapshot(uuid4(), "study", state, "the run's process died", open=False, running=False, seconds=1.0)
    return StudySnapshot(run, (run,), ended=True, completed=state == "Completed")


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
    services = LocalServices(tmp_path, Addresses(1, 2), {})
    # The server is in the saved state, so nobody stopped it.
    ServicesState(processes={"prefect-server": Process(1, "long ago")}).save(private_files.make_folder(tmp_path))
    states, launched, printed = iter(ends), [], []

    def start(study: Study, _services: LocalServices) -> Any:
        launched.append(study.name)
        return uuid4()

    monkeypatch.setattr(launch.local_services, "up", lambda *_, **__: services)
    monkeypatch.setattr(launch, "launch", start)
    monkeypatch.setattr(launch, "follow", lambda *_: ended(next(states)))
    ended_study = launch.run_study(Study(name="x"), home=tmp_path, workers=None, stay=False, log=printed.append, results=False)
    assert ended_study.parent.state == ends[launches - 1]
    assert launched == ["x"] * launches
    assert sum(line.startswith("launching it again") for line in printed) == launches - 1


def test_a_study_whose_services_were_stopped_is_not_launched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.local_services, "up", lambda *_, **__: LocalServices(tmp_path, Addresses(1, 2), {}))
    monkeypatch.setattr(launch, "launch", lambda *_: uuid4())
    monkeypatch.setattr(launch, "follow", lambda *_: ended("Crashed"))
    printed: list[str] = []
    ended_study = launch.run_study(Study(name="x"), home=tmp_path, workers=None, stay=False, log=printed.append, results=False)
    assert ended_study.parent.state == "Crashed"
    assert not any("launching it again" in line for line in printed)


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServices]:
    """Return stand-ins for the services, used by this process."""
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    ServicesState(Addresses(free_port(), free_port())).save(private_files.make_folder(tmp_path / "stack"))
    with stand_ins():
        yield launch.local_services.up(tmp_path / "stack", user="study mine", log=lambda _: None)
        launch.local_services.down(tmp_path / "stack")


@pytest.mark.parametrize("part", ["prefect-server", "worker-gpu-0"])
def test_following_a_study_restarts_services_that_died_and_prints_their_names(services: LocalServices, part: str) -> None:
    printed: list[str] = []
    assert launch.restart_dead_processes(services, "mine", printed.append) is services
    processes.stop([services.running[part]], patience_seconds=0)
    again = launch.restart_dead_processes(services, "mine", printed.append)
    assert printed == [f"{part} died; restarting", f"starting {part}"]
    assert set(again.running) == set(services.running)
    assert again.addresses == services.addresses


def test_following_a_study_whose_servers_were_stopped_prints_the_command_that_continues_it(services: LocalServices) -> None:
    launch.local_services.down(services.home)
    with pytest.raises(ServiceDown, match=r"were stopped \(clusterlora down\).*Continue with: clusterlora study run --name mine$"):
        launch.restart_dead_processes(services, "mine", lambda _: None)
    assert launch.local_services.status(services.home) is None


def test_following_a_study_does_not_retry_a_dead_server_for_minutes(services: LocalServices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's client would try seven times, with pauses of two minutes at the end."""
    requests: list[str] = []

    def fake_snapshot(*_: object) -> StudySnapshot:
        requests.append("snapshot")
        if len(requests) == 1:
            raise httpx.ConnectError("connection refused")
        assert PREFECT_CLIENT_MAX_RETRIES.value() == 0
        return ended("Completed")

    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.setenv(name, services.environment()[name])
    monkeypatch.setattr(launch, "snapshot", fake_snapshot)
    monkeypatch.setattr(launch, "WATCH_SECONDS", 0)
    monkeypatch.setattr(launch, "connect", lambda _: nullcontext())
    assert launch.follow(uuid4(), "mine", services).completed
    assert requests == ["snapshot"] * 2


@pytest.mark.whole
def test_following_a_study_continues_at_a_new_address_if_the_port_was_taken(
    services: LocalServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses: list[str] = []

    def fake_snapshot(client: Any, *_: object) -> StudySnapshot:
        addresses.append(str(client.api_url))
        return ended("Completed")

    for name, value in services.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "snapshot", fake_snapshot)
    processes.stop([services.running["prefect-server"]], patience_seconds=0)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", services.addresses.prefect_port))
        taken.listen()
        assert launch.follow(uuid4(), "mine", services).completed
    now = launch.local_services.status(services.home)
    assert now is not None
    assert now.addresses != services.addresses
    assert addresses == [f"{now.addresses.prefect}/api/"]


@pytest.mark.whole
def test_a_follower_says_how_long_once_the_study_is_probed_what_its_clusters_are_and_again_how_long_when_its_gate_is_judged(
    services: LocalServices, seven: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = MeanTokens(dialogue=100.0, prompt=60.0, response=10.0)
    rates = Rates(train_alone=0.02, train_together=0.01, n_together=4, read=0.001, write=0.03, embed=0.05, load=2.0)
    monkeypatch.setattr(expectation, "stores_without_tracker", lambda _: stores)
    said = expectation.Expectation("small", services)
    assert said.due_lines() == ()
    prepare_study(seven, stores, SilentLog())
    assert said.due_lines() == ()
    stores.studies.save_metadata("small", Probe(lengths=lengths, rates=rates, device="cpu, 8 GiB", seconds=5.0))
    stores.studies.save_metadata("small", Workers(2))
    first = said.due_lines()
    assert "by a probe of 5 s" in first[0]
    assert said.due_lines() == ()
    better = Criterion("above_unified", 0.1, 0.0, True, 0.05, 0.15, "better")
    cluster_study("small", stores, SilentLog())
    (clusters,) = said.due_lines()
    assert clusters.startswith("2 clusters by ")
    stores.studies.save_verdict("small", Verdict("own", "cluster-00", (better,), 3, 6))
    assert "by what has run so far" in said.due_lines()[0]
    assert said.due_lines() == ()
