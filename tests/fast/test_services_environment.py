"""Services that replace dead ones, and commands of other shells, work with the environment of the shell that started the services."""

import json
import os
import socket
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from email.message import Message
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.error import HTTPError

import pytest

import clusterlora
from clusterlora import private_files
from clusterlora.cli import main
from clusterlora.cli.local_stores import open_local_stores
from clusterlora.errors import BadSettings, ServiceDown, UnknownName
from clusterlora.models import device
from deployments import fork_server, local_services, local_workers, prefect_rest, processes, service_specs, services_state
from deployments.local_services import LocalServices
from deployments.processes import Process
from deployments.service_specs import Addresses, ServiceSpec

pytestmark = [pytest.mark.whole, pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process's environment")]

SLEEP = (sys.executable, "-c", "import time; time.sleep(3600)")
PAGE = "import http.server as http, sys; http.test(http.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"
UNWATCHED = {"id": "1", "name": "study · left", "deployment_id": "study", "infrastructure_pid": None}
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
    in_prefect(monkeypatch)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "first"))
    monkeypatch.setenv("CLUSTERLORA_DATABASE_URL", f"sqlite:///{tmp_path}/first.db")
    monkeypatch.setenv("OLDPWD", "/first")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    stack = private_files.make_folder(tmp_path / "stack")
    services_state.ServicesState(Addresses(service_specs.free_port(), service_specs.free_port())).save(stack)
    yield stack
    local_services.down(stack)


def in_prefect(monkeypatch: pytest.MonkeyPatch, *runs: Mapping[str, Any], refused: Collection[str] = ()) -> list[str]:
    """Let the Prefect server know these unfinished runs, while it is alive; return the names of the workers that it is asked to forget."""
    forgotten: list[str] = []

    def request(path: str, *_: Any, environment: Mapping[str, str], method: str | None = None, **_options: Any) -> Any:
        server = services_state.load(Path(environment["CLUSTERLORA_STACK_HOME"])).processes.get("prefect-server")
        if server is None or not processes.alive(server):
            raise ServiceDown("no answer") from OSError("connection refused")
        if method == "DELETE":
            forgotten.append(worker := path.rpartition("/")[2])
            if worker in refused:
                raise ServiceDown("unknown worker") from HTTPError(path, 404, "unknown worker", Message(), None)
            return None
        return list(runs)

    monkeypatch.setattr(prefect_rest, "request", request)
    return forgotten


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


@pytest.mark.parametrize("named", ["CLUSTERLORA_HOME", "CLUSTERLORA_DATABASE_URL"])
def test_a_command_that_names_the_folder_or_the_database_of_the_workers_works_with_both(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str
) -> None:
    first, _ = up(home)
    other = {"CLUSTERLORA_HOME": "CLUSTERLORA_DATABASE_URL", "CLUSTERLORA_DATABASE_URL": "CLUSTERLORA_HOME"}[named]
    for change in (partial(monkeypatch.setenv, value=""), monkeypatch.delenv):
        change(other)
        services, _ = up(home)
        assert services.running == first.running
        environment = services.environment()
        assert environment["CLUSTERLORA_HOME"] == str(tmp_path / "first")
        assert environment["CLUSTERLORA_DATABASE_URL"] == f"sqlite:///{tmp_path}/first.db"
    monkeypatch.setenv(named, {"CLUSTERLORA_HOME": str(tmp_path / "second"), "CLUSTERLORA_DATABASE_URL": "sqlite:///second.db"}[named])
    with pytest.raises(BadSettings, match=f"{named} (is|says)"):
        up(home)


@pytest.mark.parametrize("alive", [True, False])
def test_backup_doctor_and_notebooks_are_about_the_folder_of_the_services_also_of_those_that_all_died(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], alive: bool
) -> None:
    services, _ = up(home)
    if not alive:
        processes.stop(list(services.running.values()), patience_seconds=0)
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(home))
    for change in (partial(monkeypatch.setenv, value=""), monkeypatch.delenv):
        for name in ("CLUSTERLORA_HOME", "CLUSTERLORA_DATABASE_URL"):
            change(name)
        place = import_module("clusterlora.cli.backup")._place()
        assert (place.results, place.database) == (tmp_path / "first", f"sqlite:///{tmp_path}/first.db")
    with patch.dict(os.environ):
        capsys.readouterr()
        main(["doctor", "--json"])
    told = capsys.readouterr()
    (check,) = [check for check in json.loads(told.out) if check["what"] == "results"]
    assert check["found"].startswith(f"{tmp_path}/first:")
    assert told.err.count(f"results are in {tmp_path}/first") == 1
    assert (tmp_path / "first.db").is_file()
    private_files.make_home(tmp_path / "first")
    with pytest.raises(UnknownName, match="known: none"):
        clusterlora.Study("mine")
    (tmp_path / "first").rename(tmp_path / "moved")
    with pytest.raises(UnknownName, match=f"there is no folder of studies '{tmp_path}/first'"):
        clusterlora.Study("mine")


def test_services_that_all_died_are_started_again_where_their_results_are(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, told = up(home)
    assert not any("results are in" in line for line in told)
    for name in ("CLUSTERLORA_HOME", "CLUSTERLORA_DATABASE_URL"):
        monkeypatch.delenv(name)
    processes.stop(list(first.running.values()), patience_seconds=0)
    assert first.environment()["CLUSTERLORA_HOME"] == str(tmp_path / "first"), "whoever follows a study knows it though nothing runs"
    second, told = up(home)
    assert second.started == tuple(first.running)
    assert {one["CLUSTERLORA_HOME"] for one in environments(second).values()} == {str(tmp_path / "first")}
    assert any(
        f"results are in {tmp_path}/first, as in the shell that started the servers; once these are stopped, "
        "set CLUSTERLORA_HOME and CLUSTERLORA_DATABASE_URL as there" in line
        for line in told
    )
    local_services.down(home)
    assert services_state.load(home).results == {}


def test_the_doctor_checks_all_else_where_servers_run_and_the_database_is_damaged(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    up(home)
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(home))
    (tmp_path / "first.db").write_text("a note" * 1000)
    with patch.dict(os.environ):
        assert main(["doctor", "--json"]) == 1
    found = {check["what"]: check["good"] for check in json.loads(capsys.readouterr().out)}
    assert (found["database"], found["servers"], found["homelm"]) == (False, True, True)


@pytest.mark.parametrize("alive", [True, False])
def test_a_command_that_has_read_the_results_goes_on_where_they_are_and_says_where(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], alive: bool
) -> None:
    first, _ = up(home)
    if not alive:
        processes.stop(list(first.running.values()), patience_seconds=0)
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(home))
    for name in ("CLUSTERLORA_HOME", "CLUSTERLORA_DATABASE_URL"):
        monkeypatch.delenv(name)
    with patch.dict(os.environ):
        # As `study run`, `permute` and `refresh` do, which then start what does not run.
        stores = open_local_stores()
        assert stores.home == tmp_path / "first"
        assert (tmp_path / "first.db").is_file()
        second, told = up(home)
    assert services_state.load(home).results == first.results
    assert {one["CLUSTERLORA_HOME"] for one in environments(second).values()} == {str(tmp_path / "first")}
    assert f"results are in {tmp_path}/first, as in the shell that started the servers" in capsys.readouterr().err
    assert not any("results are in" in line for line in told), "it is told once"


def test_a_shell_that_names_other_results_than_services_that_died_has_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = up(home)
    processes.stop(list(first.running.values()), patience_seconds=0)
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(home))
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "second"))
    monkeypatch.delenv("CLUSTERLORA_DATABASE_URL")
    place = import_module("clusterlora.cli.backup")._place()
    assert (place.results, place.database) == (tmp_path / "second", f"sqlite:///{tmp_path}/second/clusterlora.db")
    with patch.dict(os.environ):
        assert open_local_stores().home == tmp_path / "second"
        second, _ = up(home)
    assert {one["CLUSTERLORA_HOME"] for one in environments(second).values()} == {str(tmp_path / "second")}
    assert "results are in" not in capsys.readouterr().err


def test_what_this_shell_names_is_backed_up_where_the_state_of_the_servers_is_damaged(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(home))
    state = (home / "stack.json").read_text()
    (home / "stack.json").write_text("{")
    place = import_module("clusterlora.cli.backup")._place()
    assert (place.results, place.database) == (tmp_path / "first", f"sqlite:///{tmp_path}/first.db")
    assert "is damaged" in capsys.readouterr().err
    (home / "stack.json").write_text(state)


def test_what_a_server_adds_to_its_environment_reaches_no_worker(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = environments(up(home)[0])["worker-cpu"]
    state = services_state.load(home)
    own = {"_MLFLOW_SERVER_FILE_STORE": "sqlite:///mlflow.db", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = processes.environment(state.processes["mlflow-server"]) | own
    processes.stop(list(state.processes.values()), patience_seconds=0)
    argv = (*(sys.executable, "-c", PAGE), str(state.ports.mlflow_port))
    state.processes = {"mlflow-server": processes.start(argv, env=server, folder=home, log_file=home / "mlflow.log")}
    state.save(home)
    second, _ = up(home)
    assert environments(second)["worker-cpu"] == before
    assert all_fork(second)


def test_a_worker_is_replaced_on_its_gpu_though_the_other_shell_does_not_find_the_drivers_tool(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "driver" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-a)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-b)'\n")
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    first, _ = up(home)
    follow(first, monkeypatch)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    processes.stop([first.running["worker-gpu-1"]], patience_seconds=0)
    second, _ = up(home)
    assert second.started == ("worker-gpu-1",)
    assert environments(second)["worker-gpu-1"]["CUDA_VISIBLE_DEVICES"] == "1"


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


@pytest.mark.parametrize("n", [1, 4])
def test_while_a_study_runs_that_nobody_watches_all_workers_stay(home: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    first, _ = up(home, workers=2)
    in_prefect(monkeypatch, UNWATCHED)
    second, told = up(home, workers=n)
    assert second.running == first.running
    assert "the workers stay as they are for study · left" in told
    assert services_state.load(home).workers == 2


@pytest.mark.parametrize("n", [1, 4])
def test_no_worker_is_stopped_under_a_study_that_nobody_watches_where_the_prefect_server_has_died(
    home: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    in_prefect(monkeypatch, UNWATCHED)
    first, _ = up(home, workers=2)
    processes.stop([first.running["prefect-server"]], patience_seconds=0)
    second, told = up(home, workers=n)
    assert second.started == ("prefect-server",)
    assert "the workers stay as they are for study · left" in told
    assert services_state.load(home).workers == 2


def test_no_worker_is_stopped_while_the_prefect_server_does_not_say_whether_a_study_uses_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = up(home, workers=2)

    def request(*_: Any, **_options: Any) -> Any:
        raise ServiceDown("the Prefect server does not answer")

    monkeypatch.setattr(prefect_rest, "request", request)
    with pytest.raises(ServiceDown, match="does not answer"):
        up(home, workers=4)
    services = local_services.status(home)
    assert services is not None
    assert services.running == first.running


def test_prefect_forgets_every_worker_that_was_stopped_also_one_that_it_never_knew(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    up(home, workers=4)
    forgotten = in_prefect(monkeypatch, refused=["gpu-2"])
    up(home, workers=2)
    assert forgotten == ["gpu-2", "gpu-3"]


def test_prefect_forgets_a_worker_that_ended_as_its_server_moved_and_is_not_wanted_any_more(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = up(home, workers=4)
    forgotten = in_prefect(monkeypatch)
    processes.stop([first.running["mlflow-server"]], patience_seconds=0)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", first.addresses.mlflow_port))
        taken.listen()
        up(home, workers=2)
    assert sorted(forgotten) == ["gpu-2", "gpu-3"]


def test_a_server_that_does_not_answer_is_asked_once_to_forget_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def request(path: str, **_: Any) -> Any:
        asked.append(path)
        raise ServiceDown("no answer") from TimeoutError("timed out")

    monkeypatch.setattr(prefect_rest, "request", request)
    local_workers.forget_stopped(["worker-cpu", "worker-gpu-0", "fork-server"], {})
    assert asked == ["work_pools/cpu/workers/cpu"]


@pytest.mark.parametrize(("died", "user"), [(False, None), (True, "study one"), (True, None)], ids=["no services", "used", "kept"])
def test_a_start_that_is_interrupted_leaves_nothing_of_what_its_shell_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, died: bool, user: str | None
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    if died:
        processes.stop(list(up(home, user=user)[0].running.values()), patience_seconds=0)
    before = services_state.load(home)
    assert bool(before.results) == died
    for name in ("CLUSTERLORA_HOME", "CLUSTERLORA_DATABASE_URL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "tried"))
    monkeypatch.setattr(local_services, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        up(home, workers=3, host="localhost", user="study two")
    assert services_state.load(home) == before
    assert local_services.status(home) is None


def test_deployments_that_were_applied_stay_recorded_where_the_start_fails_afterwards(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's database has them: going back to the version before would apply nothing."""

    def fails(_home: Path, servers: Collection[ServiceSpec], _running: Any) -> None:
        if len(servers) > 1:
            raise ServiceDown("mlflow-server does not answer")

    monkeypatch.setattr(local_services, "_apply", lambda *_: "new")
    monkeypatch.setattr(local_services, "_wait", fails)
    with pytest.raises(ServiceDown, match="mlflow-server"):
        up(home)
    state = services_state.load(home)
    assert (state.applied, state.results, state.processes) == ("new", {}, {})


def test_services_stay_up_where_prefect_does_not_say_what_uses_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    up(home, user="registry")

    def request(*_: Any, **_options: Any) -> Any:
        raise ServiceDown("503 Service Unavailable")

    told: list[str] = []
    monkeypatch.setattr(prefect_rest, "request", request)
    assert local_services.release(home, log=told.append) == ()
    assert "Prefect does not say whether one runs (503 Service Unavailable); clusterlora down stops them" in told[-1]
    services = local_services.status(home)
    assert services is not None
    processes.stop([services.running["prefect-server"]], patience_seconds=0)
    assert local_services.release(home, log=told.append), "nobody can use what has no server"


def test_where_the_state_is_damaged_those_that_run_say_where_results_are(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "theirs"))
    monkeypatch.delenv("CLUSTERLORA_DATABASE_URL", raising=False)
    services, _ = up(home)
    monkeypatch.delenv("CLUSTERLORA_HOME")
    (home / "stack.json").write_text('{"ports": {')
    with pytest.raises(ServiceDown, match="is damaged"):
        local_services.results_of_client(home)
    assert local_services.results_of_client(home, is_damaged=True)["CLUSTERLORA_HOME"] == str(tmp_path / "theirs")
    processes.stop(list(services.running.values()), patience_seconds=0)
    assert local_services.results_of_client(home, is_damaged=True)["CLUSTERLORA_HOME"] == str(service_specs.CHECKOUT / "studies")


def test_of_a_process_that_has_ended_no_environment_is_told() -> None:
    assert processes.environment(Process(os.getpid(), "another's")) == {}


@pytest.mark.parametrize(("written", "n"), [("150000 100000", 2), ("max 100000", 8), ("50000 100000", 1), ("", 8), (None, 8)])
def test_a_container_may_use_as_many_cores_as_its_quota_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str | None, n: int
) -> None:
    monkeypatch.setattr(device, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    if written is not None:
        (tmp_path / "cpu.max").write_text(written)
    assert service_specs.usable_cores() == n
    # Libraries would count all eight.
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with patch.dict(os.environ):
        device.limit_threads()
        assert os.environ.get("OMP_NUM_THREADS") == (str(n) if n < 8 else None)
