"""Services that replace dead ones, and commands of other shells, work with the environment of the shell that started the services."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterlora import private_files
from clusterlora.errors import BadSettings
from deployments import fork_server, local_services, processes, service_specs, services_state
from deployments.local_services import LocalServices
from deployments.processes import Process
from deployments.service_specs import Addresses, ServiceSpec

pytestmark = [pytest.mark.whole, pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process's environment")]

SLEEP = (sys.executable, "-c", "import time; time.sleep(3600)")
PAGE = "import http.server as http, sys; http.test(http.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"
WORKERS, FORK_SERVER, SERVERS = service_specs.workers, service_specs.fork_server, service_specs.servers


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the home of services with real environments, whose workers sleep and whose servers are small."""

    def servers(home: Path, addresses: Addresses, environment: Mapping[str, str]) -> tuple[ServiceSpec, ...]:
        ports = (addresses.prefect_port, addresses.mlflow_port)
        return tuple(
            replace(spec, argv=(sys.executable, "-c", PAGE, str(port)), health=f"http://127.0.0.1:{port}/")
            for spec, port in zip(SERVERS(home, addresses, environment), ports, strict=True)
        )

    def workers(*args: Any, **options: Any) -> list[ServiceSpec]:
        return [replace(spec, argv=SLEEP) for spec in WORKERS(*args, **options)]

    def forks_nothing(*args: Any) -> ServiceSpec:
        spec = FORK_SERVER(*args)
        assert spec is not None
        return replace(spec, argv=SLEEP)

    monkeypatch.setattr(service_specs, "servers", servers)
    monkeypatch.setattr(service_specs, "workers", workers)
    monkeypatch.setattr(service_specs, "fork_server", forks_nothing)
    monkeypatch.setattr(service_specs, "usable_cores", lambda: 16)
    monkeypatch.setattr(local_services, "_apply", lambda *_: None)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "first"))
    monkeypatch.setenv("CLUSTERLORA_DATABASE_URL", f"sqlite:///{tmp_path}/first.db")
    monkeypatch.setenv("OLDPWD", "/first")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    stack = private_files.make_folder(tmp_path / "stack")
    services_state.ServicesState(Addresses(service_specs.free_port(), service_specs.free_port())).save(stack)
    yield stack
    local_services.down(stack)


def up(home: Path, **options: Any) -> tuple[LocalServices, list[str]]:
    told: list[str] = []
    return local_services.up(home, log=told.append, **options), told


def follow(services: LocalServices, monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Be a command that follows runs of the services, from another shell."""
    monkeypatch.delenv("OLDPWD")
    path = {"PATH": f"/another:{os.environ['PATH']}"}
    for name, value in {**services.environment(), **path, "TERM": "another", "HF_HOME": "/another", **variables}.items():
        monkeypatch.setenv(name, value)


def environments(services: LocalServices) -> dict[str, dict[str, str]]:
    names = [name for name in services.running if name.startswith("worker-") or name == "fork-server"]
    return {name: processes.environment(services.running[name]) for name in names}


def all_fork(services: LocalServices) -> bool:
    shared = [fork_server._shared(one) for one in environments(services).values()]
    assert len(shared) == 4
    return all(one == shared[0] for one in shared)


@pytest.mark.parametrize("dead", ["worker-cpu", "worker-gpu-0", "fork-server"])
def test_after_what_died_is_replaced_runs_are_still_forked(home: Path, monkeypatch: pytest.MonkeyPatch, dead: str) -> None:
    first, _ = up(home)
    follow(first, monkeypatch)
    monkeypatch.delenv("CLUSTERLORA_DATABASE_URL")
    monkeypatch.delenv("CLUSTERLORA_HOME")
    processes.stop([first.running[dead]], patience_seconds=0)
    second, _ = up(home)
    assert second.started == (dead,)
    assert all_fork(second)


def test_a_server_that_moves_to_another_port_takes_nothing_of_the_services_with_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = up(home)
    before = environments(first)["worker-cpu"]
    follow(first, monkeypatch)
    monkeypatch.delenv("CLUSTERLORA_DATABASE_URL")
    monkeypatch.delenv("CLUSTERLORA_HOME")
    processes.stop([first.running["mlflow-server"]], patience_seconds=0)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", first.addresses.mlflow_port))
        taken.listen()
        second, _ = up(home)
    assert second.addresses.mlflow_port != first.addresses.mlflow_port
    assert all_fork(second)
    after = environments(second)["worker-cpu"]
    assert after.pop("MLFLOW_TRACKING_URI") == second.addresses.mlflow
    assert before.pop("MLFLOW_TRACKING_URI") == first.addresses.mlflow
    assert after == before


def test_a_worker_is_replaced_on_its_own_device(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    first, _ = up(home)
    follow(first, monkeypatch, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="7")
    processes.stop([first.running["worker-gpu-0"], first.running["worker-gpu-1"]], patience_seconds=0)
    second, _ = up(home)
    assert {name: one["CUDA_VISIBLE_DEVICES"] for name, one in environments(second).items() if "gpu" in name} == {
        "worker-gpu-0": "4",
        "worker-gpu-1": "5",
    }
    assert "7" not in {one.get("OMP_NUM_THREADS") for one in environments(second).values()}


def test_a_command_without_a_folder_or_database_of_its_own_reads_what_the_workers_write(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    services, _ = up(home)
    monkeypatch.delenv("CLUSTERLORA_HOME")
    monkeypatch.delenv("CLUSTERLORA_DATABASE_URL")
    for found in (services, up(home)[0]):
        environment = found.environment()
        assert environment["CLUSTERLORA_HOME"] == str(tmp_path / "first")
        assert environment["CLUSTERLORA_DATABASE_URL"] == f"sqlite:///{tmp_path}/first.db"
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "second"))
    environment = services.environment()
    assert environment["CLUSTERLORA_HOME"] == str(tmp_path / "second")
    assert environment["CLUSTERLORA_DATABASE_URL"] == f"sqlite:///{tmp_path}/second/clusterlora.db", "not one of each"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("CLUSTERLORA_HOME", "second", "workers keep their results in .*first, and CLUSTERLORA_HOME is .*second: unset it, stop them"),
        (
            "CLUSTERLORA_DATABASE_URL",
            "postgresql://me:secret@there/db",
            "write to another database than this shell's",
        ),
    ],
)
def test_a_command_with_other_results_than_the_workers_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, words: str
) -> None:
    first, _ = up(home)
    monkeypatch.setenv(variable, str(tmp_path / value) if value == "second" else value)
    with pytest.raises(BadSettings, match=words) as refused:
        up(home)
    assert "secret" not in str(refused.value)
    assert not (tmp_path / "second").exists()
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "first"))
    monkeypatch.setenv("CLUSTERLORA_DATABASE_URL", f"sqlite:///{tmp_path}/first.db")
    assert up(home)[0].running == first.running


@pytest.mark.parametrize(("devices", "n_before", "n_after"), [("", 2, 4), ("", 4, 1), ("0,1,2,3", 2, 4), ("0,1,2,3", 4, 2)])
def test_another_number_of_workers_gives_all_of_them_their_share(
    home: Path, monkeypatch: pytest.MonkeyPatch, devices: str, n_before: int, n_after: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    up(home, workers=n_before)
    services, _ = up(home, workers=n_after)
    wanted = [spec for spec in WORKERS(home, services.addresses, n_gpu_workers=n_after) if spec.name != "worker-cpu"]
    running = {name: one for name, one in environments(services).items() if "gpu" in name}
    assert running.keys() == {spec.name for spec in wanted}
    for spec in wanted:
        assert [running[spec.name].get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")] == [
            spec.env.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        ]


def test_while_a_study_uses_the_workers_all_of_them_stay(home: Path) -> None:
    first, _ = up(home, workers=2)
    state = services_state.load(home)
    state.users["study one, pid 1"] = processes.identify(os.getppid())
    state.save(home)
    second, told = up(home, workers=4)
    assert second.running == first.running
    assert "the workers stay as they are for study one, pid 1" in told
    assert services_state.load(home).workers == 2


def test_of_a_process_that_has_ended_no_environment_is_told() -> None:
    assert processes.environment(Process(os.getpid(), "another's")) == {}


@pytest.mark.parametrize(("written", "n"), [("150000 100000", 2), ("max 100000", 8), ("50000 100000", 1), ("", 8), (None, 8)])
def test_a_container_may_use_as_many_cores_as_its_quota_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str | None, n: int
) -> None:
    monkeypatch.setattr(service_specs, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    if written is not None:
        (tmp_path / "cpu.max").write_text(written)
    assert service_specs.usable_cores() == n
