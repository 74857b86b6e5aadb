"""The local stack: a Prefect server, an MLflow server and workers on this machine, shared by everything that is done with it.

State lives in `<home>/stack.json` (books.py), output in `<home>/logs/`; nobody else can read either. `up` is idempotent: it restarts what
died and keeps what lives. A stack is stopped by `down`, or when the last one leaves that used it, unless somebody asked for it to stay.
"""

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clusterlora.errors import BadSettings, ServiceDown
from deployments import books as bookkeeping
from deployments import passwords, private, processes, services
from deployments.api import ask
from deployments.books import Books
from deployments.processes import Process
from deployments.services import CHECKOUT, LOOPBACK, Addresses, Service
from deployments.supervise import is_flow_process

START_SECONDS = 300.0
"""How long the servers may take to answer: both migrate a fresh database first, slowly on a busy machine."""


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

    def login_link(self) -> str:
        """Return an address that lets a browser in at both servers, once."""
        return f"{self.addresses.prefect}/enter#{passwords.new_link(self.home)}"


def default_home() -> Path:
    """Return where the stack keeps its state: CLUSTERLORA_STACK_HOME, else `.clusterlora` in the checkout."""
    return Path(os.environ.get("CLUSTERLORA_STACK_HOME") or CHECKOUT / ".clusterlora").resolve()


def up(home: Path, *, workers: int | None = None, host: str | None = None, user: str | None = None, log: Callable[[str], None]) -> Stack:
    """Start what is not running and return the stack once both servers answer and everything is deployed.

    Args:
        workers: processes for the gpu pool; None means those that run, at first one per GPU, or two without any.
        host: address to listen on; None means as before (a fresh stack listens on loopback).
        user: what this process needs the stack for, until it says `leave` or ends. None means that the stack stays up until `down`.
        log: is told one line per step.

    Raises:
        BadSettings: the home is no place of one's own, or a running stack would have to listen elsewhere.
        ServiceDown: a server did not start; carries the end of its log.
    """
    private.folder(home)
    private.folder(services.results_home())
    # A port is free until its server listens: two stacks of one machine choose theirs one after the other.
    of_machine = private.folder(Path(tempfile.gettempdir()) / f"clusterlora-{os.getuid()}")
    with bookkeeping.locked(home), bookkeeping.only_one(of_machine / "ports.lock"):
        books = bookkeeping.read(home)
        others = books.others(bookkeeping.this_process())
        running = books.running()
        books.stopping = False
        books.ports = _doors(_free_addresses(books.ports, running), running, host)
        wanted_servers = services.servers(home, books.ports)
        wanted_workers = services.workers(home, books.ports, n_gpu_workers=workers)
        starter = services.warm_starter(home, books.ports)
        starters = (starter,) if starter else ()
        names = {service.name for service in (*wanted_servers, *starters, *wanted_workers)}
        _dismiss([name for name in running if name not in names], running, by_order=workers is not None, others=others, log=log)
        books.processes = running
        started: list[str] = []

        def ensure(service: Service) -> None:
            if service.name not in running:
                log(f"starting {service.name}")
                log_file = _log_file(home, service.name)
                running[service.name] = processes.start(service.argv, env=service.env, folder=CHECKOUT, log_file=log_file)
                started.append(service.name)
                books.write(home)

        try:
            private.folder(home / "mlflow")
            # What forks runs is ready by the time that somebody asks for one.
            for service in (*wanted_servers, *starters):
                ensure(service)
            _wait(home, wanted_servers[:1], running)
            books.applied = _apply(home, books.ports, books.applied, log)
            for service in wanted_workers:
                ensure(service)
            _wait(home, wanted_servers, running)
        except BaseException:
            # What others need is left to come up, also when whoever started it again is interrupted.
            if not (books.kept or others):
                processes.stop([running[name] for name in started])
            raise
        if user is None:
            books.kept = True
        else:
            books.users[f"{user}, pid {os.getpid()}"] = bookkeeping.this_process()
        books.write(home)
    return Stack(home, books.ports, running, tuple(started), workers)


def join(home: Path, user: str) -> Stack | None:
    """Need the stack from now on if it runs, as `up` does for its user; return it, or None when it does not run."""
    if not home.is_dir():
        return None
    with bookkeeping.locked(home):
        books = bookkeeping.read(home)
        running = books.running()
        if not running:
            return None
        books.users[f"{user}, pid {os.getpid()}"] = bookkeeping.this_process()
        books.write(home)
    return Stack(home, books.ports, running)


def leave(home: Path, *, keep: bool = False, log: Callable[[str], None]) -> tuple[str, ...]:
    """Need the stack no longer; stop it when nobody does, and return what was stopped.

    Args:
        keep: let it stay up until `down` whoever leaves later, as `clusterlora up` does.
        log: is told why it stays, or that it is stopped.
    """
    if not home.is_dir():
        return ()
    with bookkeeping.locked(home):
        books = bookkeeping.read(home)
        me = bookkeeping.this_process()
        books.users = {name: process for name, process in books.users.items() if process != me}
        books.kept |= keep
        books.write(home)
        if books.kept or not books.running():
            return ()
        if busy := books.others(me) or _under_way(home, books):
            log(f"the servers stay up for {', '.join(busy)}")
            return ()
        log("stopping servers and workers")
        return _stop(home, books)


def down(home: Path) -> tuple[str, ...]:
    """Stop the stack whoever uses it; return what was stopped."""
    if not home.is_dir():
        return ()
    with bookkeeping.locked(home):
        return _stop(home, bookkeeping.read(home))


def users(home: Path) -> tuple[str, ...]:
    """Return who uses the stack besides this process."""
    return bookkeeping.read(home).others(bookkeeping.this_process())


def is_kept(home: Path) -> bool:
    """Return whether the stack stays up until `down`."""
    return bookkeeping.read(home).kept


def status(home: Path) -> Stack | None:
    """Return the stack as it runs now, or None when no process of it is alive."""
    books = bookkeeping.read(home)
    running = books.running()
    return Stack(home, books.ports, running) if running else None


def died(home: Path) -> tuple[str, ...]:
    """Return the names of processes that ended without being stopped: they are still in the books, but not alive."""
    return bookkeeping.read(home).died()


def was_stopped(home: Path) -> bool:
    """Return whether the Prefect server was stopped on purpose; one that died is still in the books."""
    books = bookkeeping.read(home)
    return books.stopping or "prefect-server" not in books.processes


def _stop(home: Path, books: Books) -> tuple[str, ...]:
    running = books.running()
    if not books.processes and not books.kept:
        return ()
    books.stopping = True
    books.write(home)
    # The workers go first, so that the server still hears how their runs end.
    processes.stop([process for name, process in running.items() if name.startswith("worker-")])
    processes.stop(list(running.values()))
    books.processes, books.kept, books.stopping = {}, False, False
    books.write(home)
    return tuple(running)


def _under_way(home: Path, books: Books) -> tuple[str, ...]:
    """Return the names of runs that are under way without anybody who follows them; none when the server does not say."""
    started = {"flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}}
    try:
        runs = ask("flow_runs/filter", started, environment=services.client_environment(home, books.ports), tries=3)
    except ServiceDown:
        return ()
    pids = {run["name"]: run["infrastructure_pid"] for run in runs if run["deployment_id"]}
    return tuple(name for name, pid in pids.items() if pid is None or is_flow_process(int(pid)))


def _dismiss(
    surplus: list[str], running: dict[str, Process], *, by_order: bool, others: tuple[str, ...], log: Callable[[str], None]
) -> None:
    """Stop workers that are too many, if somebody asked for fewer and nobody else needs them."""
    if surplus and by_order and others:
        for name in surplus:
            log(f"{name} stays for {', '.join(others)}")
    elif by_order:
        processes.stop([running.pop(name) for name in surplus])


def _free_addresses(before: Addresses, running: dict[str, Process]) -> Addresses:
    """Return the ports: those of before where their server runs or nobody else took them. Whoever knows others is stopped."""
    ports: dict[str, int] = {}
    for server, key in (("prefect-server", "prefect_port"), ("mlflow-server", "mlflow_port")):
        port = int(getattr(before, key))
        ports[key] = port if server in running or _is_free(port) else services.free_port()
    found = replace(before, **ports)
    if found != before:
        processes.stop([running.pop(name) for name in list(running) if name.startswith("worker-") or name == "warm"])
    return found


def _doors(addresses: Addresses, running: Mapping[str, Process], host: str | None) -> Addresses:
    """Return the addresses to listen on."""
    wanted = replace(addresses, host=services.checked_host(host) if host else addresses.host)
    if wanted != addresses and any(name.endswith("-server") for name in running):
        raise BadSettings(f"the servers are up on {addresses.host}, not on {host}; stop them first: clusterlora down")
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
    with private.append(log_file) as output:
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
