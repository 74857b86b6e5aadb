"""Local services: detached processes, devices, environments, and starting and stopping the servers."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner
from prefect.client.orchestration import SyncPrefectClient

from clusterlora import private_files
from clusterlora.cli import cli
from clusterlora.errors import BadSettings, ServiceDown
from deployments import fork_server, local_services, passwords, processes, run, service_specs, services_state
from deployments.processes import Process
from deployments.service_specs import Addresses

SLEEP = (sys.executable, "-c", "import time; time.sleep(3600)")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate the tests from a developer's own services and studies."""
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    monkeypatch.delenv("CLUSTERLORA_DATABASE_URL", raising=False)
    # The lock on ports is machine-wide: without this, tests would wait for services that start elsewhere.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def start(tmp_path: Path, *argv: str) -> Process:
    return processes.start(argv, env=os.environ, folder=tmp_path, log_file=tmp_path / "logs" / "x.log")


def test_a_process_is_alive_until_it_is_stopped(tmp_path: Path) -> None:
    process = start(tmp_path, *SLEEP)
    assert processes.alive(process)
    processes.stop([process])
    assert not processes.alive(process)


def test_a_process_that_ended_by_itself_is_not_alive(tmp_path: Path) -> None:
    process = start(tmp_path, sys.executable, "-c", "print('so long')")
    while processes.alive(process):
        time.sleep(0.05)
    assert processes.last_lines(tmp_path / "logs" / "x.log") == "so long"


def test_another_process_with_the_same_pid_is_never_stopped(tmp_path: Path) -> None:
    process = start(tmp_path, *SLEEP)
    processes.stop([Process(process.pid, birth="12345")])
    assert processes.alive(process)
    processes.stop([process])


@pytest.mark.whole
def test_children_are_stopped_with_their_parent_and_killed_if_they_ignore_sigterm(tmp_path: Path) -> None:
    script = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)']); print(child.pid, flush=True); time.sleep(3600)"
    )
    parent = start(tmp_path, sys.executable, "-c", script)
    log_file = tmp_path / "logs" / "x.log"
    while not log_file.read_text().strip():
        time.sleep(0.05)
    child = int(log_file.read_text())
    processes.stop([parent], patience_seconds=1)
    assert not processes.alive(parent)
    status = Path(f"/proc/{child}/stat")
    assert not status.exists() or ") Z " in status.read_text()


def test_a_process_started_from_a_background_job_still_listens_to_sigint(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from deployments import processes;"
        "where = Path(sys.argv[1]); processes.start([sys.executable, '-c', 'import signal; print(signal.getsignal(signal.SIGINT))'],"
        " env=os.environ, folder=where, log_file=where / 'x.log')"
    )
    subprocess.run(["sh", "-c", 'trap "" INT; "$@"', "sh", sys.executable, "-c", script, str(tmp_path)], check=True)
    while not (seen := (tmp_path / "x.log").read_text().strip()):
        time.sleep(0.05)
    assert "default_int_handler" in seen


WHOLE = "GPU 0: NVIDIA H200 (UUID: GPU-a)\nGPU 1: NVIDIA H200 (UUID: GPU-b)\n"
SLICED = "GPU 0: NVIDIA H200 (UUID: GPU-a)\n  MIG 1g.18gb     Device  0: (UUID: MIG-1)\n  MIG 1g.18gb     Device  1: (UUID: MIG-2)\n"


@pytest.mark.parametrize(
    ("listing", "devices"), [("", []), (WHOLE, ["0", "1"]), (SLICED, ["MIG-1", "MIG-2"]), (SLICED + WHOLE[33:], ["MIG-1", "MIG-2", "1"])]
)
def test_each_gpu_or_mig_slice_is_a_device(listing: str, devices: list[str]) -> None:
    assert service_specs.parse_devices(listing) == devices


@pytest.mark.parametrize(
    ("visible", "devices"), [("0,3", ["0", "3"]), ("", []), ("-1", []), ("0,-1,1", ["0"]), ("NoDevFiles", []), ("MIG-1", ["MIG-1"])]
)
def test_cuda_visible_devices_of_the_user_is_respected(monkeypatch: pytest.MonkeyPatch, visible: str, devices: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert service_specs.cuda_devices() == devices


def test_every_gpu_gets_one_worker_that_sees_no_other_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    specs = service_specs.workers(tmp_path, Addresses(1, 2), n_gpu_workers=None)
    of_gpus = [worker for worker in specs if worker.name.startswith("worker-gpu")]
    assert [worker.name for worker in of_gpus] == ["worker-gpu-0", "worker-gpu-1", "worker-gpu-2"]
    assert [worker.env["CUDA_VISIBLE_DEVICES"] for worker in of_gpus] == ["0", "1", "2"]
    assert all("--limit 1" in " ".join(worker.argv) for worker in of_gpus)


@pytest.mark.parametrize(
    ("visible", "n_workers", "shares"),
    [
        ("0,1,2,3", 1, ["0,1,2,3"]),
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("0,1,2", 2, ["0", "1"]),
        ("0,1", 5, ["0", "1"]),
        ("MIG-1,MIG-2", 1, ["MIG-1"]),
    ],
)
def test_fewer_workers_than_gpus_see_several_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str, n_workers: int, shares: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    specs = service_specs.workers(tmp_path, Addresses(1, 2), n_gpu_workers=n_workers)
    assert [worker.env["CUDA_VISIBLE_DEVICES"] for worker in specs if worker.name.startswith("worker-gpu")] == shares


def test_without_a_gpu_the_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(service_specs, "usable_cores", lambda: 8)
    specs = service_specs.workers(tmp_path, Addresses(1, 2), n_gpu_workers=4)
    of_gpus = [worker for worker in specs if worker.name.startswith("worker-gpu")]
    assert len(of_gpus) == 4
    assert {worker.env["OMP_NUM_THREADS"] for worker in of_gpus} == {"2"}


def test_prefects_server_keeps_connections_longer_than_its_clients_do(tmp_path: Path) -> None:
    prefect, _ = service_specs.servers(tmp_path, Addresses(1, 2))
    client: Any = SyncPrefectClient("http://127.0.0.1:1/api")
    assert client._client._transport._pool._keepalive_expiry < int(prefect.argv[prefect.argv.index("--timeout-keep-alive") + 1])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are held to cores on Linux alone")
def test_cores_outside_the_cpu_affinity_are_not_counted() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert service_specs.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux alone")
@pytest.mark.parametrize("devices", ["", "0,1"])
def test_the_fork_server_has_the_environment_of_the_runs_of_both_pools(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devices: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    starter = service_specs.fork_server(tmp_path, Addresses(1, 2))
    assert starter is not None
    for worker in service_specs.workers(tmp_path, Addresses(1, 2), n_gpu_workers=None):
        # What deployments/run.py adds.
        assert fork_server._shared({**worker.env, **run.ENVIRONMENT}) == fork_server._shared(starter.env)


def test_prefect_clients_retry_for_minutes_but_do_not_oversleep_a_recovered_server(tmp_path: Path):
    env = service_specs.client_environment(tmp_path, Addresses(1, 2))
    # Prefect's client sleeps 2, 4, 8, ... seconds.
    pauses = [2**n for n in range(1, int(env["PREFECT_CLIENT_MAX_RETRIES"]) + 1)]
    assert sum(pauses) > 120
    assert max(pauses) <= 128


def test_database_and_home_set_by_the_user_are_respected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLUSTERLORA_DATABASE_URL", "postgresql+psycopg://example/studies")
    env = service_specs.client_environment(tmp_path, Addresses(1, 2))
    assert env["CLUSTERLORA_DATABASE_URL"] == "postgresql+psycopg://example/studies"
    assert env["CLUSTERLORA_HOME"] == str(tmp_path / "studies")
    assert env["PREFECT_HOME"] == str(tmp_path / "prefect")


def test_servers_and_clients_have_the_same_passwords(tmp_path: Path) -> None:
    made = passwords.load_or_create(tmp_path)
    assert passwords.load_or_create(tmp_path) == made
    assert (tmp_path / "passwords.json").stat().st_mode & 0o077 == 0
    addresses = Addresses(1, 2)
    client = service_specs.client_environment(tmp_path, addresses)
    prefect, mlflow = service_specs.servers(tmp_path, addresses)
    assert prefect.env["PREFECT_SERVER_API_AUTH_STRING"] == client["PREFECT_API_AUTH_STRING"] == f"clusterlora:{made.prefect}"
    assert client["MLFLOW_TRACKING_PASSWORD"] == made.mlflow
    assert "deployments.auth_middleware:prefect" in prefect.argv
    assert "--app-name clusterlora" in " ".join(mlflow.argv)
    # Every user of a machine can read command lines.
    assert not any(secret in " ".join((*prefect.argv, *mlflow.argv)) for secret in (made.prefect, made.mlflow))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"prefect": 1}', b'{"prefect": "x", ', b'{"prefect": "", "mlflow": ""}', b"\xff", b"[" * 200_000]
)
def test_a_damaged_file_of_passwords_is_named_and_never_an_empty_password(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "passwords.json").write_bytes(content)
    with pytest.raises(BadSettings, match=r"passwords\.json, which holds the servers' passwords, is damaged; .* remove the file"):
        service_specs.servers(tmp_path, Addresses(1, 2))


def test_a_host_that_is_not_an_ip_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="is not an IP address"):
        local_services.up(tmp_path, host="everybody", log=lambda _: None)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not show the environment of a process")
@pytest.mark.parametrize("content", [b"", b'{"ports": {"prefect_port": 42', b"[]", b'{"ports": 3}', b"\xff", b"[" * 200_000])
def test_where_the_saved_state_is_damaged_down_finds_what_runs_and_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    home = tmp_path / "stack"
    home.mkdir()
    of_these = {**os.environ, "PREFECT_HOME": str(service_specs.prefect_home(home))}
    ours = processes.start(SLEEP, env=of_these, folder=tmp_path, log_file=tmp_path / "logs" / "x.log")
    other = start(tmp_path, *SLEEP)
    (home / "stack.json").write_bytes(content)
    with pytest.raises(ServiceDown, match=r"stack\.json, which says what servers run, is damaged \(.*\); .* with: clusterlora down"):
        local_services.status(home)
    try:
        monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(home))
        # What a person types, as the message says.
        typed = CliRunner().invoke(cli, ["down", "--json"])
        assert (typed.exit_code, json.loads(typed.output)) == (0, [f"process {ours.pid}"])
        assert not processes.alive(ours)
        assert processes.alive(other)
        assert local_services.status(home) is None
    finally:
        processes.stop([ours, other], patience_seconds=0)


def test_down_begins_anew_where_the_saved_state_is_damaged_and_nothing_runs(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text('{"ports": {')
    assert local_services.down(tmp_path) == ()
    assert local_services.status(tmp_path) is None


def test_status_and_down_report_nothing_where_nothing_was_started(tmp_path: Path) -> None:
    assert local_services.status(tmp_path) is None
    assert local_services.down(tmp_path / "absent") == ()


def test_a_server_that_dies_at_its_start_is_reported_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> tuple[service_specs.ServiceSpec, ...]:
        argv = (sys.executable, "-c", "raise SystemExit('no space left on device')")
        return (service_specs.ServiceSpec("prefect-server", argv, os.environ, health="http://127.0.0.1:9/health"),)

    monkeypatch.setattr(service_specs, "servers", broken)
    with pytest.raises(ServiceDown, match=r"prefect-server ended right after its start(.|\n)*no space left on device"):
        local_services.up(tmp_path, log=lambda _: None)
    assert local_services.status(tmp_path) is None


PAGE = "import http.server as http, sys; http.test(http.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"


@pytest.fixture
def small_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the servers by small HTTP servers and the workers by sleeping processes; nothing is deployed."""

    def servers(_home: Path, addresses: Addresses, _environment: Mapping[str, str]) -> tuple[service_specs.ServiceSpec, ...]:
        ports = {"prefect-server": addresses.prefect_port, "mlflow-server": addresses.mlflow_port}
        return tuple(
            service_specs.ServiceSpec(name, (sys.executable, "-c", PAGE, str(port)), os.environ, health=f"http://127.0.0.1:{port}/")
            for name, port in ports.items()
        )

    monkeypatch.setattr(service_specs, "servers", servers)
    monkeypatch.setattr(
        service_specs, "workers", lambda *_, **__: [service_specs.ServiceSpec(f"worker-{n}", SLEEP, os.environ) for n in ("cpu", "gpu")]
    )
    monkeypatch.setattr(service_specs, "fork_server", lambda *_: None)
    monkeypatch.setattr(local_services, "_apply", lambda *_: None)


def started(home: Path, prefect_port: int, mlflow_port: int) -> local_services.LocalServices:
    """Start services whose saved state has these ports."""
    home.mkdir(exist_ok=True)
    (home / "stack.json").write_text(json.dumps({"ports": {"prefect_port": prefect_port, "mlflow_port": mlflow_port}}))
    return local_services.up(home, log=lambda _: None)


@pytest.mark.whole
@pytest.mark.usefixtures("small_servers")
def test_services_started_at_the_same_time_choose_different_ports(tmp_path: Path) -> None:
    homes, ports = [tmp_path / "one", tmp_path / "two"], [service_specs.free_port(), service_specs.free_port()]
    try:
        with ThreadPoolExecutor() as both:
            started_services = list(both.map(lambda home: started(home, *ports), homes))
        assert len({port for one in started_services for port in (one.addresses.prefect_port, one.addresses.mlflow_port)}) == 4
    finally:
        for home in homes:
            local_services.down(home)


@pytest.mark.whole
@pytest.mark.usefixtures("small_servers")
def test_up_restarts_dead_processes_keeps_running_ones_and_avoids_used_ports(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        try:
            first = started(tmp_path, port, port)
            assert set(first.started) == {"prefect-server", "mlflow-server", "worker-cpu", "worker-gpu"}
            assert port not in (first.addresses.prefect_port, first.addresses.mlflow_port)

            processes.stop([first.running["worker-gpu"]], patience_seconds=0)
            second = local_services.up(tmp_path, log=lambda _: None)
            assert second.started == ("worker-gpu",)
            assert second.addresses == first.addresses
            assert second.running["prefect-server"] == first.running["prefect-server"]

            processes.stop([second.running["worker-cpu"]], patience_seconds=0)
            assert local_services.dead_processes(tmp_path) == ("worker-cpu",)
        finally:
            stopped = local_services.down(tmp_path)
    assert set(stopped) == {"prefect-server", "mlflow-server", "worker-gpu"}
    assert local_services.status(tmp_path) is None
    assert local_services.dead_processes(tmp_path) == ()


def test_the_folder_of_our_programs_is_first_in_the_path_and_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = service_specs.client_environment(tmp_path, Addresses(1, 2))["PATH"]
    monkeypatch.setenv("PATH", first)
    assert service_specs.client_environment(tmp_path, Addresses(1, 2))["PATH"] == first
    assert first.startswith(str(Path(sys.executable).parent))
    # A folder that is named from here is another one where the services run.
    monkeypatch.setenv("PATH", f"{os.path.relpath(Path(sys.executable).parent)}:/bin")
    assert service_specs.client_environment(tmp_path, Addresses(1, 2))["PATH"].startswith(f"{Path(sys.executable).parent}:")


def test_an_sqlite_file_that_is_named_from_here_is_the_same_one_for_the_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given, meant in (
        ("sqlite:///my.db", f"sqlite:///{tmp_path}/my.db"),
        ("sqlite+pysqlite:///below/my.db?timeout=5", f"sqlite+pysqlite:///{tmp_path}/below/my.db?timeout=5"),
        (f"sqlite:///{tmp_path}/my.db", f"sqlite:///{tmp_path}/my.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql://me@there/my.db", "postgresql://me@there/my.db"),
    ):
        monkeypatch.setenv("CLUSTERLORA_DATABASE_URL", given)
        assert service_specs.client_environment(tmp_path, Addresses(1, 2))["CLUSTERLORA_DATABASE_URL"] == meant


@pytest.mark.whole
@pytest.mark.usefixtures("small_servers")
@pytest.mark.parametrize("server", ["prefect-server", "mlflow-server"])
def test_a_port_that_is_taken_between_check_and_start_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    """Whoever took it answers as a server does."""
    first = Addresses(service_specs.free_port(), service_specs.free_port())
    port = first.prefect_port if server == "prefect-server" else first.mlflow_port
    services_state.ServicesState(first).save(private_files.make_folder(tmp_path / "stack"))
    was_free, thieves, lines = local_services._is_free, list[ThreadingHTTPServer](), list[str]()

    def take_it(asked: int) -> bool:
        free = was_free(asked)
        if free and asked == port:
            thieves.append(ThreadingHTTPServer(("127.0.0.1", port), Healthy))
            Thread(target=thieves[0].serve_forever, daemon=True).start()
        return free

    monkeypatch.setattr(local_services, "_is_free", take_it)
    try:
        services = local_services.up(tmp_path / "stack", log=lines.append)
        assert port not in (services.addresses.prefect_port, services.addresses.mlflow_port)
        assert f"{server} found its port {port} taken by another program; starting at another" in lines
        assert local_services.dead_processes(tmp_path / "stack") == ()
    finally:
        local_services.down(tmp_path / "stack")
        thieves[0].shutdown()
        thieves[0].server_close()


class Healthy(BaseHTTPRequestHandler):
    """Answers everything, as another user's server does its health."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell who listens")
def test_a_server_is_not_up_while_another_program_answers_at_its_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_services, "START_SECONDS", 1.0)
    process = start(tmp_path, *SLEEP)
    with ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        server = service_specs.ServiceSpec("mlflow-server", SLEEP, os.environ, health=f"http://127.0.0.1:{other.server_port}/health")
        with pytest.raises(ServiceDown, match="mlflow-server did not answer within 1 s"):
            local_services._wait(tmp_path, (server,), {"mlflow-server": process})
        other.shutdown()
    processes.stop([process], patience_seconds=0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell who listens")
def test_whoever_listens_at_a_port_is_told_by_the_system(tmp_path: Path) -> None:
    program = "import socket, sys, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); time.sleep(60)"
    # In a child of the process that leads the session, as MLflow's workers are.
    argv = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"]
    process = start(tmp_path, *argv)
    try:
        while not (port := processes.last_lines(tmp_path / "logs" / "x.log")).isdigit():
            time.sleep(0.05)
        with socket.create_server(("127.0.0.1", 0)) as mine:
            assert processes.listens(process, int(port))
            assert not processes.listens(process, mine.getsockname()[1])
            assert not processes.listens(processes.identify(os.getpid()), int(port))
    finally:
        processes.stop([process], patience_seconds=0)


def test_a_folder_in_the_place_of_the_state_is_damage(tmp_path: Path) -> None:
    (tmp_path / "stack" / "stack.json").mkdir(parents=True)
    with pytest.raises(ServiceDown, match=r"stack\.json, which says what servers run, is damaged"):
        local_services.status(tmp_path / "stack")
