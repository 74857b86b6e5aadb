"""State of the local services in `<home>/stack.json`: ports, processes and users, changed under one lock."""

import fcntl
import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clusterlora import private_files
from clusterlora.errors import ServiceDown
from deployments import processes
from deployments.processes import Process
from deployments.service_specs import Addresses, prefect_home

_FILE, _LOCK = "stack.json", "stack.lock"


@dataclass
class ServicesState:
    """Ports, processes and users of the local services. Pid and start time identify a process."""

    ports: Addresses = field(default_factory=lambda: Addresses(4200, 5000))
    processes: dict[str, Process] = field(default_factory=dict)
    """Processes that were started and not stopped on purpose, by name."""
    applied: str | None = None
    """Digest of the deployments that were last applied to the Prefect server."""
    users: dict[str, Process] = field(default_factory=dict)
    """Programs that use the services, by what they do; a program that died no longer counts."""
    kept: bool = False
    """Whether the services stay up until `clusterlora down`, even without users."""
    workers: int | None = None
    """How many workers of the gpu pool were last asked for, until the services are stopped; None: as many as there are devices."""
    results: dict[str, str] = field(default_factory=dict)
    """Folder and database that the processes write to, as variables; none where none was started, or all were stopped on purpose."""
    stopping: bool = False
    """Whether the services are being stopped on purpose: processes that end meanwhile are not reported as dead."""

    def running(self) -> dict[str, Process]:
        """Return the processes that are alive."""
        return {name: process for name, process in self.processes.items() if processes.alive(process)}

    def dead(self) -> tuple[str, ...]:
        """Return the names of processes that ended without being stopped."""
        if self.stopping:
            return ()
        running = self.running()
        return tuple(name for name in self.processes if name not in running)

    def other_users(self, than: Process) -> tuple[str, ...]:
        """Return the names of the users that are alive, without the one whose process is `than`."""
        return tuple(name for name, process in self.users.items() if process != than and processes.alive(process))

    def save(self, home: Path) -> None:
        """Write the state to disk, without users that died."""
        self.users = {name: process for name, process in self.users.items() if processes.alive(process)}
        private_files.write_private(home / _FILE, json.dumps(asdict(self), indent=2))


def load(home: Path) -> ServicesState:
    """Return the state as last saved; an empty one if nothing was ever started.

    Raises:
        ServiceDown: what was saved is damaged, or another user's.
    """
    file = home / _FILE
    try:
        entries: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        by_name = {part: {name: Process(**process) for name, process in entries.get(part, {}).items()} for part in ("processes", "users")}
        entries.update(by_name, ports=Addresses(**entries["ports"]))
        return ServicesState(**entries)
    except FileNotFoundError:
        return ServicesState()
    except PermissionError as error:
        raise ServiceDown(
            f"{file}, which says what servers run, belongs to another user; give this shell servers of its own (CLUSTERLORA_STACK_HOME)"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise ServiceDown(
            f"{file}, which says what servers run, is damaged ({error}); stop those that run, and begin anew, with: clusterlora down"
        ) from error


def recovered(home: Path) -> ServicesState:
    """Return a state with the processes that run for these services, whatever is saved: all have its folder in their environment."""
    found = processes.leaders_with("PREFECT_HOME", str(prefect_home(home)))
    return ServicesState(processes={f"process {process.pid}": process for process in found})


@contextmanager
def locked(home: Path, on_wait: Callable[[], None] | None = None) -> Generator[None]:
    """Hold the lock under which these services are started and stopped."""
    with file_lock(home / _LOCK, on_wait):
        yield


@contextmanager
def file_lock(path: Path, on_wait: Callable[[], None] | None = None) -> Generator[None]:
    """Hold an exclusive lock between the processes of this machine; `on_wait` is called before it waits for another that has it."""
    with private_files.open_append(path) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait:
                on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def this_process() -> Process:
    """Return the calling process."""
    return processes.identify(os.getpid())
