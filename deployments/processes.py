"""Detached processes that outlive their starter, recognised by pid and birth so that a recycled pid is never signalled."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments import private

KILL_SECONDS = 5.0
"""How long a killed process may take to go: the kernel first gives back its memory."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that leads its own session; `birth` tells it from a later process with the same pid."""

    pid: int
    birth: str


def start(argv: Sequence[str], *, env: Mapping[str, str], folder: Path, log_file: Path) -> Process:
    """Start a process in its own session, its output appended to `log_file`, and return it; what it writes nobody else can read."""
    private.folder(log_file.parent)
    with private.append(log_file) as output:
        child = subprocess.Popen(  # its end is noticed by `alive`
            argv,
            env=dict(env),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_listen_to_signals,
            umask=private.UMASK,
        )
    # The session outlives this program: without a note of its status, Python would warn about a running child at exit.
    child.returncode = 0
    return known(child.pid)


def known(pid: int) -> Process:
    """Return the process that has this pid now."""
    return Process(pid, _birth(pid) or "gone")


def alive(process: Process) -> bool:
    """Return whether this very process still runs."""
    _reap(process.pid)
    return _birth(process.pid) == process.birth


def stop(processes: Sequence[Process], *, patience_seconds: float = 15.0) -> None:
    """End the sessions of these processes: politely first, by force after `patience_seconds`."""
    leaders = [process.pid for process in processes if alive(process)]
    for number, patience in ((signal.SIGTERM, patience_seconds), (signal.SIGKILL, KILL_SECONDS)):
        for pid in leaders:
            _signal_group(pid, number)
        deadline = time.monotonic() + patience
        while (leaders := [pid for pid in leaders if _group_exists(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)


def command_line(pid: int) -> str:
    """Return the command line of a living process, empty when there is none."""
    if _birth(pid) is None:
        return ""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return ""
    return subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()


def last_lines(log_file: Path, *, n_lines: int = 15) -> str:
    """Return the end of a log file, or a note that there is none."""
    if not log_file.is_file():
        return "(no output)"
    return "\n".join(log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-n_lines:]) or "(no output)"


def _listen_to_signals() -> None:
    # A shell starts background jobs with SIGINT ignored, and Prefect's worker then also ignores its first SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _birth(pid: int) -> str | None:
    """Return when a process began, in words of its system; None when it has ended or is a zombie."""
    if sys.platform == "linux":
        # Ticks since boot do not move when the clock is set, as a wall-clock start time would.
        fields = _stat(pid)
        return None if not fields or fields[0] in "ZX" else fields[19]
    listing = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    state, _, started = listing.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def _stat(pid: int) -> list[str]:
    """Return Linux's facts of a process from its state on (state, parent, group, ...); empty when there is none."""
    try:
        # The name comes before and may contain anything, also brackets and blanks.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # somebody else's child, or reaped already


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return  # the whole group has ended


def _group_exists(pid: int) -> bool:
    """Return whether any process of the group runs; zombies, which nobody may ever reap in a container, do not count."""
    _reap(pid)
    if sys.platform == "linux":
        states = (_stat(int(folder.name)) for folder in Path("/proc").iterdir() if folder.name.isdigit())
        return any(fields[0] not in "ZX" and int(fields[2]) == pid for fields in states if fields)
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True
