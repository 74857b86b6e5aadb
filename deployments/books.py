"""What a stack's home says of it: ports, processes, who uses it, whether it is to stay up. One file, changed under one lock."""

import fcntl
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deployments import private, processes
from deployments.processes import Process
from deployments.services import Addresses

_FILE, _LOCK = "stack.json", "stack.lock"


@dataclass
class Books:
    """The state of a stack. Processes are told apart by pid and birth, so what died is seen without anybody's word."""

    ports: Addresses = field(default_factory=lambda: Addresses(4200, 5000))
    processes: dict[str, Process] = field(default_factory=dict)
    """Everything that was started and not stopped on purpose, by name."""
    applied: str | None = None
    """Digest of the deployments that the server holds."""
    users: dict[str, Process] = field(default_factory=dict)
    """Programs that need the stack, by what they do; one that ended without a word no longer counts."""
    kept: bool = False
    """Whether somebody asked for a stack that stays up until `clusterlora down`."""
    stopping: bool = False
    """Whether it is being stopped on purpose at this moment: what ends meanwhile has not died."""

    def running(self) -> dict[str, Process]:
        """Return the processes that live."""
        return {name: process for name, process in self.processes.items() if processes.alive(process)}

    def died(self) -> tuple[str, ...]:
        """Return the names of processes that ended without being stopped."""
        if self.stopping:
            return ()
        running = self.running()
        return tuple(name for name in self.processes if name not in running)

    def others(self, than: Process) -> tuple[str, ...]:
        """Return who else uses the stack."""
        return tuple(name for name, process in self.users.items() if process != than and processes.alive(process))

    def write(self, home: Path) -> None:
        """Put the state on disk."""
        self.users = {name: process for name, process in self.users.items() if processes.alive(process)}
        private.write(home / _FILE, json.dumps(asdict(self), indent=2))


def read(home: Path) -> Books:
    """Return the state as it was last written; fresh books where nothing was ever started."""
    file = home / _FILE
    if not file.is_file():
        return Books()
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    named = {part: {name: Process(**entry) for name, entry in known.get(part, {}).items()} for part in ("processes", "users")}
    return Books(**{**known, "ports": Addresses(**known["ports"]), **named})


@contextmanager
def locked(home: Path) -> Generator[None]:
    """Let nobody else start or stop this stack inside the block."""
    with only_one(home / _LOCK):
        yield


@contextmanager
def only_one(lock: Path) -> Generator[None]:
    """Let one process of the machine at a time into the block."""
    with private.append(lock) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def this_process() -> Process:
    """Return the process that asks."""
    return processes.known(os.getpid())
