"""Detached processes, identified by pid and start time so that a recycled pid is never signalled."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clusterlora import private_files

KILL_SECONDS = 5.0
"""Time limit for a killed process to end: the kernel first frees its memory."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that leads its own session. `birth`, its start time, distinguishes it from a later process with the same pid."""

    pid: int
    birth: str


def start(argv: Sequence[str], *, env: Mapping[str, str], folder: Path, log_file: Path) -> Process:
    """Start a process in its own session and return it. Its output is appended to `log_file`; other users can read no file of it."""
    private_files.make_folder(log_file.parent)
    with private_files.open_append(log_file) as output:
        child = subprocess.Popen(  # `alive` reaps it
            argv,
            env=dict(env),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_restore_interrupt,
            umask=private_files.UMASK,
        )
    # The session outlives this program: without a return code, Python would warn about a running child at exit.
    child.returncode = 0
    return identify(child.pid)


def identify(pid: int) -> Process:
    """Return the process that has this pid."""
    return Process(pid, _birth(pid) or "gone")


def alive(process: Process) -> bool:
    """Return whether the process runs; a later process with its pid does not count."""
    _reap(process.pid)
    return _birth(process.pid) == process.birth


def listens(process: Process, port: int) -> bool:
    """Return whether a process of this session accepts connections at a TCP port; always true where the system does not tell."""
    if sys.platform != "linux":
        return True
    with suppress(OSError):
        tables = [Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:] for table in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table]
        listening = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
        of_session = [
            folder for folder in Path("/proc").iterdir() if folder.name.isdigit() and _stat(int(folder.name))[2:3] == [str(process.pid)]
        ]
        return any(not listening.isdisjoint(_opened(folder / "fd")) for folder in of_session)
    return True


def stop(processes: Sequence[Process], *, patience_seconds: float = 15.0) -> None:
    """End the sessions of these processes: SIGTERM first, SIGKILL after `patience_seconds`."""
    leaders = [process.pid for process in processes if alive(process)]
    for number, patience in ((signal.SIGTERM, patience_seconds), (signal.SIGKILL, KILL_SECONDS)):
        for pid in leaders:
            _signal_group(pid, number)
        deadline = time.monotonic() + patience
        while (leaders := [pid for pid in leaders if _group_exists(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)


def command_line(pid: int) -> str:
    """Return the command line of a process; empty if it does not run."""
    if _birth(pid) is None:
        return ""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return ""
    return subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()


def environment(process: Process) -> dict[str, str]:
    """Return the environment that a process was started with; empty if it has ended, or the system does not tell."""
    with suppress(OSError):
        entries = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        if alive(process):
            return {name: value for name, is_set, value in (os.fsdecode(entry).partition("=") for entry in entries) if is_set}
    return {}


def leaders_with(variable: str, value: str) -> list[Process]:
    """Return the processes that lead a session and have this value in their environment; none where the system has no /proc."""
    wanted = f"{variable}={value}".encode()
    found: list[Process] = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid, fields = int(folder.name), _stat(int(folder.name))
        with suppress(OSError):  # it has ended, or is another user's
            if len(fields) > 3 and int(fields[3]) == pid and wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(identify(pid))
    return found


def last_lines(log_file: Path, *, n_lines: int = 15) -> str:
    """Return the last lines of a log file, or a note that it is empty."""
    if not log_file.is_file():
        return "(no output)"
    return "\n".join(log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-n_lines:]) or "(no output)"


def _restore_interrupt() -> None:
    # A shell starts background jobs with SIGINT ignored; Prefect's worker would then also ignore its first SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _birth(pid: int) -> str | None:
    """Return the start time of a process as its system prints it; None if it has ended or is a zombie."""
    if sys.platform == "linux":
        # Ticks since boot: setting the clock does not change them.
        fields = _stat(pid)
        return None if not fields or fields[0] in "ZX" else fields[19]
    listing = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    state, _, started = listing.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on (state, parent, group, ...); empty if there is no such process."""
    try:
        # The name stands before the last bracket and may itself contain brackets and blanks.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _opened(descriptors: Path) -> set[str]:
    """Return what the file descriptors in a folder of /proc are of; empty if the process has ended."""
    opened: set[str] = set()
    with suppress(OSError):
        for descriptor in descriptors.iterdir():
            opened.add(str(descriptor.readlink()))
    return opened


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # not a child of this process, or reaped already


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return  # the whole group has ended


def _group_exists(pid: int) -> bool:
    """Return whether any process of the group runs. Zombies do not count: in a container nobody may ever reap them."""
    _reap(pid)
    if sys.platform == "linux":
        states = (_stat(int(folder.name)) for folder in Path("/proc").iterdir() if folder.name.isdigit())
        return any(fields[0] not in "ZX" and int(fields[2]) == pid for fields in states if fields)
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True
