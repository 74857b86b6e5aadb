"""Faults of what a study stores in: its disk, its database, and the clock of the host beside it."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import psycopg

from tests.all.chaos.blows import Struck, stack_of
from tests.all.chaos.place import CHECKOUT, Process

_MOST_SECONDS = 120


def fill_small_disk(struck: Struck) -> str:
    """Fill the studies' disk to its last byte until the study ends, two minutes at most; then make room again."""
    filler = struck.there.folder / "studies" / ".filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(256))
    n_bytes = filler.stat().st_size
    _wait(struck)
    filler.unlink()
    return f"{n_bytes / 1e6:.0f} MB filled; {_last_words(struck)}"


def delete_database(struck: Struck) -> str:
    """Delete the file of the study database with all that SQLite keeps beside it."""
    for file in (struck.there.folder / "studies").glob("clusterlora.db*"):
        file.unlink()
    _wait(struck)
    return _last_words(struck)


def lock_database(struck: Struck) -> str:
    """Hold the one lock under which SQLite writes for two minutes."""
    with closing(sqlite3.connect(struck.there.folder / "studies" / "clusterlora.db", isolation_level=None, timeout=30)) as holder:
        holder.execute("begin immediate")
        time.sleep(_MOST_SECONDS)
        holder.execute("rollback")
    return ""


def make_database_read_only(struck: Struck) -> str:
    """Let PostgreSQL refuse every change, also in the transactions of connections that are open."""
    seconds = struck.rng.uniform(5, 40)
    with psycopg.connect(struck.there.database(struck.there.ports["postgres"]), autocommit=True) as connection:
        connection.execute("set session characteristics as transaction read write")
        connection.execute("alter system set default_transaction_read_only = on")
        connection.execute("select pg_reload_conf()")
        time.sleep(seconds)
        connection.execute("alter system reset default_transaction_read_only")
        connection.execute("select pg_reload_conf()")
    return f"for {seconds:.0f} s"


def join_from_other_clock(struck: Struck) -> str:
    """Start the study on a second host as well: a disk of its own, the same servers, and a clock an hour away."""
    there, hours = struck.there, struck.rng.choice((-1, 1))
    other = there.folder / f"host-{struck.study}"
    other.mkdir()
    clock = other / "clock"
    clock.write_bytes((3600 * hours).to_bytes(8, "little", signed=True))
    environment = {**there.environment, "CLUSTERLORA_HOME": str(other / "studies"), "CHAOS_CLOCK": str(clock)}
    with (there.folder / f"{struck.study}.log").open("ab") as output:
        argv = [sys.executable, "-m", "tests.all.chaos.direct", struck.study, str(struck.seed)]
        process = subprocess.Popen(argv, cwd=CHECKOUT, env=environment, stdout=output, stderr=output, start_new_session=True)
    struck.companions.append(Process(process.pid, process.poll))
    return f"{hours:+d} h"


def start_other_worker(struck: Struck) -> str:
    """Start a worker of the gpu pool from a checkout of another version beside those of the stack."""
    checkout = struck.there.folder / "other-checkout"
    if not checkout.exists():
        checkout.mkdir()
        for name in ("clusterlora", "deployments", "flows", "tasks", "tests", "prefect.yaml", "pyproject.toml"):
            subprocess.run(["cp", "-r", str(CHECKOUT / name), str(checkout / name)], check=True)
        version = checkout / "clusterlora" / "__init__.py"
        version.write_text(version.read_text(encoding="utf-8").replace('__version__ = "', '__version__ = "0.0.9+'), encoding="utf-8")
    exports = dict(
        line.removeprefix("export ").split("=", 1) for line in stack_of(struck).cli("up", "--exports").splitlines() if "=" in line
    )
    environment = {**struck.there.environment, **{k: v.strip("'\"") for k, v in exports.items()}, "PYTHONPATH": str(checkout)}
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    with (struck.there.folder / "other-worker.log").open("ab") as output:
        argv = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "gpu", "--type", "process", "--limit", "1"]
        # A harness in the background ignores SIGINT, and so would the worker, which ends by it.
        hear_ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        worker = subprocess.Popen(
            argv, cwd=checkout, env=environment, stdout=output, stderr=output, start_new_session=True, preexec_fn=hear_ctrl_c
        )
    _wait(struck, 300)
    worker.terminate()
    worker.wait()
    return _last_words(struck)


def _wait(struck: Struck, seconds: float = _MOST_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while struck.processes[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)


def _last_words(struck: Struck) -> str:
    """Return how the study ended that was struck: the last line that it said."""
    code = struck.processes[0].poll()
    if code == 0:
        return "it ended well"
    lines = struck.there.last_output(struck.study).strip().splitlines()
    return f"it said: {lines[-1][:160]}" if code is not None and lines else "it went on"
