"""The local stack: a Prefect server, an MLflow server and workers on this machine, started once and kept.

State lives in `<home>/stack.json` (ports, pids with their births), output in `<home>/logs/`. `up` is idempotent: it
restarts what died and keeps what lives.
"""

import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clusterlora.durable import make_folder, write_durably
from clusterlora.errors import BadSettings, ServiceDown
from deployments import passwords, processes, services
from deployments.processes import Process
from deployments.services import CHECKOUT, LOOPBACK, Addresses, Service

START_SECONDS = 300.0
"""How long the servers may take to answer: both migrate a fresh database first, slowly on a busy machine."""
_LOCK = "stack.lock"
"""In a stack's home: held by whoever starts or stops it."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack. `started` names the processes that this call to `up` started, `workers` is what it was asked for."""

    home: Path
    addresses: Addresses
    running: Mapping[str, Process]
    started: tuple[str, ...] = ()
    workers: int | None = None

    def environment(self) -> dict[str, str]:
        """Return the variables through which a process finds this stack."""
        return services.client_environment(self.home, self.addresses)


def default_home() -> Path:
    """Return where the stack keeps its state: CLUSTERLORA_STACK_HOME, else `.clusterlora` in the checkout."""
    return Path(os.environ.get("CLUSTERLORA_STACK_HOME") or CHECKOUT / ".clusterlora").resolve()


def up(home: Path, *, workers: int | None = None, auth: bool | None = None, host: str | None = None, log: Callable[[str], None]) -> Stack:
    """Start what is not running and return the stack once both servers answer and everything is deployed.

    Args:
        workers: processes for the gpu pool; None means one per GPU, or two without any.
        auth: whether the servers ask for passwords; None means as before (a fresh stack asks for none).
        host: address to listen on; None means as before (a fresh stack listens on loopback).
        log: is told one line per step.

    Raises:
        BadSettings: others would be let in without a password, or a running stack would have to change its doors.
        ServiceDown: a server did not start; carries the end of its log.
    """
    make_folder(home)
    # A port is free until its server listens: two stacks of one machine choose theirs one after the other.
    with _only_one(home / _LOCK), _only_one(Path(tempfile.gettempdir()) / f"clusterlora-{os.getuid()}.lock"):
        state = _read(home)
        running = _running(state)
        addresses = _doors(home, _addresses(state, running), running, auth=auth, host=host)
        wanted_servers = services.servers(home, addresses)
        wanted_workers = services.workers(home, addresses, n_gpu_workers=workers)
        starter = services.warm_starter(home, addresses)
        starters = (starter,) if starter else ()
        names = {service.name for service in (*wanted_servers, *starters, *wanted_workers)}
        processes.stop([process for name, process in running.items() if name not in names])
        running = {name: process for name, process in running.items() if name in names}
        started: list[str] = []

        def ensure(service: Service) -> None:
            if service.name not in running:
                log(f"starting {service.name}")
                log_file = _log_file(home, service.name)
                running[service.name] = processes.start(service.argv, env=service.env, folder=CHECKOUT, log_file=log_file)
                started.append(service.name)
                _write(home, addresses, running, applied=state.get("applied"))

        try:
            (home / "mlflow").mkdir(exist_ok=True)
            # What forks runs is ready by the time that somebody asks for one.
            for service in (*wanted_servers, *starters):
                ensure(service)
            _wait(home, wanted_servers[:1], running)
            applied = _apply(home, addresses, state.get("applied"), log)
            for service in wanted_workers:
                ensure(service)
            _wait(home, wanted_servers, running)
        except BaseException:
            processes.stop([running[name] for name in started])
            raise
        _write(home, addresses, running, applied=applied)
    return Stack(home, addresses, running, tuple(started), workers)


def down(home: Path) -> tuple[str, ...]:
    """Stop the stack, workers before servers; return what was stopped."""
    if not home.is_dir():
        return ()
    with _only_one(home / _LOCK):
        state = _read(home)
        running = _running(state)
        # The workers go first, so that the server still hears how their runs end.
        processes.stop([process for name, process in running.items() if name.startswith("worker-")])
        processes.stop(list(running.values()))
        if state:
            _write(home, Addresses(**state["ports"]), {}, applied=state.get("applied"))
    return tuple(running)


def status(home: Path) -> Stack | None:
    """Return the stack as it runs now, or None when no process of it is alive."""
    state = _read(home)
    running = _running(state)
    return Stack(home, Addresses(**state["ports"]), running) if running else None


def died(home: Path) -> tuple[str, ...]:
    """Return the names of processes that ended without being stopped: they are still in the books, but not alive."""
    # Under the lock: a `down` that is under way has not brought its books up to date.
    with _only_one(home / _LOCK):
        state = _read(home)
        running = _running(state)
    return tuple(name for name in state.get("processes", {}) if name not in running)


@contextmanager
def _only_one(lock: Path) -> Generator[None]:
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _read(home: Path) -> dict[str, Any]:
    file = home / "stack.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _write(home: Path, addresses: Addresses, running: Mapping[str, Process], *, applied: str | None) -> None:
    state = {
        "ports": asdict(addresses),
        "processes": {name: {"pid": process.pid, "birth": process.birth} for name, process in running.items()},
        "applied": applied,
    }
    write_durably(home / "stack.json", json.dumps(state, indent=2).encode())


def _running(state: Mapping[str, Any]) -> dict[str, Process]:
    known = {name: Process(**entry) for name, entry in state.get("processes", {}).items()}
    return {name: process for name, process in known.items() if processes.alive(process)}


def _addresses(state: Mapping[str, Any], running: dict[str, Process]) -> Addresses:
    """Return the ports to use: the known ones where possible. Workers of a server that has to move are stopped."""
    known = state.get("ports", {"prefect_port": 4200, "mlflow_port": 5000})
    ports: dict[str, int] = {}
    for server, key in (("prefect-server", "prefect_port"), ("mlflow-server", "mlflow_port")):
        ports[key] = known[key] if server in running or _is_free(known[key]) else services.free_port()
    if any(known[key] != port for key, port in ports.items()):
        processes.stop([running.pop(name) for name in list(running) if name.startswith("worker-") or name == "warm"])
    return Addresses(**ports, host=known.get("host", LOOPBACK))


def _doors(home: Path, addresses: Addresses, running: Mapping[str, Process], *, auth: bool | None, host: str | None) -> Addresses:
    """Return the addresses to listen on, and see to it that the passwords are as asked."""
    wanted = replace(addresses, host=host or addresses.host)
    asks = passwords.read(home) is not None
    if (wanted != addresses or auth not in (None, asks)) and any(name.endswith("-server") for name in running):
        raise BadSettings("the servers are up with another --host or --auth; stop them first: clusterlora down")
    if auth is False:
        passwords.forget(home)
    passwords.refuse_open_doors(wanted.host, passwords.make(home) if auth else passwords.read(home))
    return wanted


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _wait(home: Path, servers: tuple[Service, ...], running: Mapping[str, Process]) -> None:
    deadline = time.monotonic() + START_SECONDS
    for server in servers:
        while not _answers(server.health or ""):
            died = not processes.alive(running[server.name])
            if died or time.monotonic() > deadline:
                log_file = _log_file(home, server.name)
                what = "ended right after its start" if died else f"did not answer within {START_SECONDS:.0f} s"
                raise ServiceDown(f"{server.name} {what}; its log is {log_file} and ends with:\n{processes.last_lines(log_file)}")
            time.sleep(0.25)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _apply(home: Path, addresses: Addresses, applied: str | None, log: Callable[[str], None]) -> str:
    """Bring pools and deployments to the server, unless it holds exactly these already; return their digest."""
    current = _definitions_digest()
    if applied == current:
        return current
    log("creating work pools and deployments")
    log_file = _log_file(home, "apply")
    env = {**os.environ, **services.client_environment(home, addresses)}
    with log_file.open("ab") as output:
        command = [sys.executable, "-m", "deployments.apply", "--without-automations"]
        done = subprocess.run(command, env=env, cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise ServiceDown(f"the deployments could not be created; {log_file} ends with:\n{processes.last_lines(log_file)}")
    return current


def _definitions_digest() -> str:
    """Return a hash of everything that shapes the deployments and their parameter forms."""
    files = [
        CHECKOUT / "prefect.yaml",
        CHECKOUT / "clusterlora" / "settings.py",
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
