"""The local services: a Prefect server, an MLflow server and workers on this machine, shared by all commands.

State is in `<home>/stack.json` (services_state.py), output in `<home>/logs/`; other users can read neither. `up` is idempotent: it restarts
processes that died and keeps those that run. `down` stops the services; so does the last user's `release`, unless somebody started them
to stay up.
"""

import hashlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clusterlora import private_files
from clusterlora.errors import BadSettings, ServiceDown
from deployments import local_workers, passwords, processes, service_specs, services_environment, services_state
from deployments.processes import Process
from deployments.service_specs import CHECKOUT, LOOPBACK, Addresses, ServiceSpec
from deployments.services_state import ServicesState

START_SECONDS = 300.0
"""Time limit for the servers to answer: both migrate a fresh database first, which is slow on a busy machine."""
_PORTS = {"prefect-server": "prefect_port", "mlflow-server": "mlflow_port"}


class PortTaken(ServiceDown):
    """Another program took a server's port after it was found free."""


@dataclass(frozen=True, slots=True)
class LocalServices:
    """Running services. `started` names the processes that this call to `up` started."""

    home: Path
    addresses: Addresses
    running: Mapping[str, Process]
    started: tuple[str, ...] = ()
    results: Mapping[str, str] = field(default_factory=dict[str, str])
    """Folder and database that they write to, as variables."""

    def environment(self) -> dict[str, str]:
        """Return the environment variables through which a process finds these services."""
        return service_specs.client_environment(self.home, self.addresses, services_environment.of_client(self.results))

    def login_link(self) -> str:
        """Return a link that logs a browser in at both servers, once."""
        return f"{self.addresses.prefect}/enter#{passwords.create_login_token(self.home)}"


def default_home() -> Path:
    """Return the folder of the services' state: CLUSTERLORA_STACK_HOME, else `.clusterlora` in the checkout."""
    return Path(os.path.realpath(os.environ.get("CLUSTERLORA_STACK_HOME") or CHECKOUT / ".clusterlora"))


def up(
    home: Path, *, workers: int | None = None, host: str | None = None, user: str | None = None, log: Callable[[str], None]
) -> LocalServices:
    """Start what does not run; return the services once both servers answer and all deployments are applied.

    Args:
        workers: number of worker processes of the gpu pool; None keeps the number last asked for since the services were started, at first
            one per GPU, or two without a GPU.
        host: address to listen on; None keeps the current one, at first loopback.
        user: what this process uses the services for, until it calls `release` or ends. None: the services stay up until `down`.
        log: receives one line per step.

    Raises:
        BadSettings: `home` belongs to or is writable by another user, running servers would have to listen on another address, or keep
            results elsewhere than this command says.
        ServiceDown: a server did not start; the message contains the end of its log.
    """
    private_files.make_home(home)
    try:
        return _up(home, workers, host, user, log)
    except PortTaken as taken:
        log(f"{taken}; starting at another")
        return _up(home, workers, host, user, log)


def _up(home: Path, workers: int | None, host: str | None, user: str | None, log: Callable[[str], None]) -> LocalServices:
    with _starting(home, log):
        state = services_state.load(home)
        before = replace(state)
        other_users = state.other_users(services_state.this_process())
        running = state.running()
        ran_before = bool(running)
        results = _results(state, running)
        if running:
            services_environment.refuse_other_results(results)
        # Before any of them is stopped: what is started now goes on by it.
        environment = services_environment.of_services(running) or services_environment.of_client(results)
        state.results = service_specs.results_of(environment)
        private_files.make_home(service_specs.results_home(environment))
        if line := services_environment.adopted(state.results):
            log(line)
        state.stopping = False
        state.ports = _with_host(_free_addresses(state.ports, running), running, host)
        servers = service_specs.servers(home, state.ports, environment)
        specs_of = partial(service_specs.workers, home, state.ports, environment=environment)
        fork_server = service_specs.fork_server(home, state.ports, environment)
        state.processes = running
        started: list[str] = []

        def ensure(spec: ServiceSpec) -> None:
            if spec.name not in running:
                log(f"starting {spec.name}")
                log_file = _log_file(home, spec.name)
                running[spec.name] = processes.start(spec.argv, env=spec.env, folder=CHECKOUT, log_file=log_file)
                started.append(spec.name)
                state.save(home)

        try:
            private_files.make_folder(home / "mlflow")
            # The fork server starts early: its imports take as long as the servers need to start.
            for spec in (*servers, *([fork_server] if fork_server else [])):
                ensure(spec)
            _wait(home, servers[:1], running)
            state.applied = _apply(home, state.ports, state.applied, log)
            # The Prefect server knows what uses the workers, and may have been started just now.
            worker_specs = local_workers.settled(state, specs_of, workers, other_users, _address(home, state), log, known=before.processes)
            for spec in worker_specs:
                ensure(spec)
            _wait(home, servers, running)
        except BaseException:
            # Other users need these processes, even if the program that restarted them is interrupted; whoever kept some that died, none.
            if not (other_users or (state.kept and ran_before)):
                processes.stop([running[name] for name in started])
                # Nothing of this try is left, such as where its results were to be, but what Prefect's database has.
                before.applied = state.applied
                before.save(home)
            raise
        if user is None:
            state.kept = True
        else:
            state.users[f"{user}, pid {os.getpid()}"] = services_state.this_process()
        state.save(home)
    return LocalServices(home, state.ports, running, tuple(started), state.results)


def _results(state: ServicesState, running: Mapping[str, Process]) -> Mapping[str, str]:
    """Return folder and database that services write to, or wrote to until they died."""
    # Earlier versions did not record it.
    environment = None if state.results else services_environment.of_services(running)
    return service_specs.results_of(environment) if environment else state.results


@contextmanager
def _starting(home: Path, log: Callable[[str], None]) -> Generator[None]:
    """Hold the locks under which services are started: of the home, and of the machine, where a port is free until its server listens."""
    of_home = services_state.locked(home, lambda: log("another command starts or stops these services; waiting for it"))
    ports = "servers of another home are starting on this machine; waiting until they have their ports"
    with of_home, services_state.file_lock(_machine_folder(home) / "ports.lock", lambda: log(ports)):
        yield


def _machine_folder(home: Path) -> Path:
    """Return a folder for what this user's homes on a machine share; `home` where there is none.

    Not under /tmp, where whoever comes first can keep others from starting anything.
    """
    for variable, below in (("XDG_RUNTIME_DIR", "clusterlora"), ("HOME", ".cache/clusterlora-locks")):
        if folder := os.environ.get(variable):
            with suppress(OSError, BadSettings):
                return private_files.make_folder(Path(folder) / below)
    return home


def acquire(home: Path, user: str) -> LocalServices | None:
    """Register this process as a user, as `up` does, and return the services; None if they do not run."""
    if not home.is_dir():
        return None
    with services_state.locked(home):
        state = services_state.load(home)
        running = state.running()
        if not running:
            return None
        state.users[f"{user}, pid {os.getpid()}"] = services_state.this_process()
        state.save(home)
    return LocalServices(home, state.ports, running, results=_results(state, running))


def release(home: Path, *, keep: bool = False, log: Callable[[str], None]) -> tuple[str, ...]:
    """Unregister this process; stop the services if nobody else uses them, and return the names of the stopped processes.

    Args:
        keep: leave the services up until `down`, as `clusterlora up` does.
        log: receives one line that says why the services stay up, or that they are stopped.
    """
    if not home.is_dir():
        return ()
    with services_state.locked(home):
        state = services_state.load(home)
        this_process = services_state.this_process()
        state.users = {name: process for name, process in state.users.items() if process != this_process}
        state.kept |= keep
        state.save(home)
        if state.kept or not state.running():
            return ()
        users = state.other_users(this_process)
        if not users and "prefect-server" in state.running():
            try:
                users = _unfinished_runs(home, state)
            except ServiceDown as problem:
                users = (f"studies, if any: Prefect does not say whether one runs ({problem}); clusterlora down stops them",)
        if users:
            log(f"the servers stay up for {', '.join(users)}")
            return ()
        log("stopping servers and workers")
        return _stop(home, state)


def down(home: Path) -> tuple[str, ...]:
    """Stop the services, even if others use them; return the names of the stopped processes.

    Where the file that names them is damaged, the processes are found by their environment.
    """
    if not home.is_dir():
        return ()
    with services_state.locked(home):
        try:
            state = services_state.load(home)
        except ServiceDown:
            state = services_state.recovered(home)
            state.save(home)
        return _stop(home, state)


def other_users(home: Path) -> tuple[str, ...]:
    """Return the names of the other processes that use the services."""
    return services_state.load(home).other_users(services_state.this_process())


def stays_up(home: Path) -> bool:
    """Return whether the services stay up until `down`."""
    return services_state.load(home).kept


def status(home: Path) -> LocalServices | None:
    """Return the running services; None if none of their processes is alive."""
    state = services_state.load(home)
    running = state.running()
    return LocalServices(home, state.ports, running, results=_results(state, running)) if running else None


def results_of_client(home: Path, *, is_damaged: bool = False) -> Mapping[str, str]:
    """Return where a command of this shell reads and writes results, as variables: folder and database of the services, also of such that
    all died, unless its environment names others.

    Args:
        is_damaged: the file that says so is; those that run are asked.
    """
    state = services_state.recovered(home) if is_damaged else services_state.load(home)
    return service_specs.results_of(services_environment.of_client(_results(state, state.running())))


def dead_processes(home: Path) -> tuple[str, ...]:
    """Return the names of processes that ended without being stopped: they are in the saved state, but not alive."""
    return services_state.load(home).dead()


def was_stopped(home: Path) -> bool:
    """Return whether the Prefect server was stopped on purpose; one that died is still in the saved state."""
    state = services_state.load(home)
    return state.stopping or "prefect-server" not in state.processes


def _stop(home: Path, state: ServicesState) -> tuple[str, ...]:
    running = state.running()
    if not state.processes and not state.kept:
        return ()
    state.stopping = True
    state.save(home)
    # Workers first: they report the end of their runs to the server.
    processes.stop([process for name, process in running.items() if name.startswith("worker-")])
    local_workers.forget_stopped(running, _address(home, state))
    processes.stop(list(running.values()))
    state.processes, state.kept, state.stopping, state.workers, state.results = {}, False, False, None, {}
    state.save(home)
    return tuple(running)


def _unfinished_runs(home: Path, state: ServicesState) -> tuple[str, ...]:
    return local_workers.unfinished_runs(_address(home, state))


def _address(home: Path, state: ServicesState) -> Mapping[str, str]:
    return service_specs.client_environment(home, state.ports)


def _free_addresses(previous: Addresses, running: dict[str, Process]) -> Addresses:
    """Return the previous ports, or a free one where another program took the port of a server that does not run.

    When a port changes, the workers and the fork server are stopped: they know the old one.
    """
    ports: dict[str, Any] = {}
    for server, key in _PORTS.items():
        port = int(getattr(previous, key))
        ports[key] = port if server in running or _is_free(port) else service_specs.free_port()
    addresses = replace(previous, **ports)
    if addresses != previous:
        processes.stop([running.pop(name) for name in list(running) if name.startswith("worker-") or name == service_specs.FORK_SERVER])
    return addresses


def _with_host(addresses: Addresses, running: Mapping[str, Process], host: str | None) -> Addresses:
    """Return the addresses with the given host, if there is one."""
    requested = replace(addresses, host=service_specs.checked_host(host) if host else addresses.host)
    if requested != addresses and any(server in running for server in _PORTS):
        raise BadSettings(f"the servers listen on {addresses.host}, not on {host}; stop them first: clusterlora down")
    return requested


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _wait(home: Path, servers: tuple[ServiceSpec, ...], running: Mapping[str, Process]) -> None:
    deadline = time.monotonic() + START_SECONDS
    for server in servers:
        process, port = running[server.name], urlsplit(server.health or "").port or 0
        # Whoever took its port may answer, too, as another stack's server does, before this one finds it taken.
        while (died := not processes.alive(process)) or not (_answers(server.health or "") and processes.listens(process, port)):
            if died and port and not _is_free(port):
                raise PortTaken(f"{server.name} found its port {port} taken by another program")
            if died or time.monotonic() > deadline:
                log_file = _log_file(home, server.name)
                failure = "ended right after its start" if died else f"did not answer within {START_SECONDS:.0f} s"
                raise ServiceDown(f"{server.name} {failure}; its log {log_file} ends with:\n{processes.last_lines(log_file)}")
            time.sleep(0.25)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _apply(home: Path, addresses: Addresses, applied: str | None, log: Callable[[str], None]) -> str:
    """Apply work pools and deployments to the server unless it has exactly these; return their digest."""
    current = _definitions_digest()
    if applied == current:
        return current
    log("creating work pools and deployments")
    log_file = _log_file(home, "apply")
    env = {**os.environ, **service_specs.client_environment(home, addresses)}
    with private_files.open_append(log_file) as output:
        command = [sys.executable, "-m", "deployments.apply", "--local"]
        completed = subprocess.run(command, env=env, cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT, check=False)
    if completed.returncode != 0:
        raise ServiceDown(f"the deployments could not be created; {log_file} ends with:\n{processes.last_lines(log_file)}")
    return current


def _definitions_digest() -> str:
    """Return a hash of every file that determines the deployments and their parameter forms."""
    core = CHECKOUT / "clusterlora"
    files = [
        CHECKOUT / "prefect.yaml",
        *(core / name for name in ("settings.py", "recipe.py", "config.py", "form.py")),
        # The names to choose from: the catalogs of methods, metrics, sources, ...
        *sorted(core.rglob("__init__.py")),
        *sorted((CHECKOUT / "flows").glob("*.py")),
        *sorted((CHECKOUT / "deployments").glob("*.py")),
        *sorted((CHECKOUT / "deployments" / "pools").glob("*.json")),
    ]
    digest = hashlib.sha256(str(CHECKOUT).encode())
    for file in files:
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def _log_file(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"
