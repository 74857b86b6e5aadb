"""Faults that are injected into a study or its services."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tests.all.chaos.place import Place, Process, StackPlace


@dataclass(frozen=True)
class Struck:
    """A study under way: where, as which processes, under which name and with which seed."""

    there: Place
    study: str
    seed: int
    processes: list[Process]
    rng: random.Random


Strike = Callable[[Struck], str]
"""Does it, and returns in a few words what exactly was done (empty when the name says it all)."""


@dataclass(frozen=True)
class Blow:
    strike: Strike
    place: type[Place] = Place
    slow: bool = False
    """The study reaches its database by the proxy."""


def kill_trainer(struck: Struck) -> str:
    # It may have ended while somebody looked at what was finished.
    with suppress(ProcessLookupError):
        os.kill(struck.processes[0].pid, signal.SIGKILL)
    return ""


def kill_service(name: str) -> Strike:
    def strike(struck: Struck) -> str:
        struck.there.kill(name)
        struck.there.start(name)
        return ""

    return strike


def silence_mlflow(struck: Struck) -> str:
    group = struck.there.running["mlflow"].pid
    os.killpg(group, signal.SIGSTOP)
    time.sleep(60)
    os.killpg(group, signal.SIGCONT)
    return ""


def fill_disk(struck: Struck) -> str:
    """Let no file of the process grow any more: what a full disk does to it, without filling one."""
    subprocess.run(["prlimit", "--pid", str(struck.processes[0].pid), "--fsize=1024"], check=False)
    return ""


def slow_down_database(struck: Struck) -> str:
    delay = struck.rng.uniform(0.05, 0.5)
    struck.there.proxy.delay_seconds = delay
    time.sleep(20)
    struck.there.proxy.delay_seconds = 0.0
    return f"{1000 * delay:.0f} ms per packet for 20 s"


def launch_twice(struck: Struck) -> str:
    """Start the study a second time while it runs, and a second study on the same people and settings twice as well."""
    for name in (struck.study, f"{struck.study}-b", f"{struck.study}-b"):
        struck.processes.append(struck.there.launch(name, struck.seed))
    return ""


def jump_clock(struck: Struck) -> str:
    """Move the wall clock of the study, MLflow and PostgreSQL, and some seconds later move it again."""
    hours = [struck.rng.choice((-720, -24, -1, 1, 24, 720)) for _ in range(2)]
    for jump in hours:
        struck.there.set_clock(jump)
        time.sleep(struck.rng.uniform(1, 6))
    return " then ".join(f"{jump:+d} h" for jump in hours)


def kill_run_of(*flows: str) -> Strike:
    """Kill the process that executes a run of one of these flows; when there is none, wait for one."""

    def strike(struck: Struck) -> str:
        pid = _wait_for(struck, flows)
        if pid:
            os.kill(pid, signal.SIGKILL)
        return "" if pid else "there was none"

    return strike


def kill_worker(struck: Struck) -> str:
    name, pid = struck.rng.choice(sorted(_stack(struck).pids("worker-").items()))
    os.kill(pid, signal.SIGKILL)
    return name


def kill_worker_and_run(struck: Struck) -> str:
    run = _wait_for(struck, ("flows.train.train", "flows.evaluate.evaluate"))
    for pid in (*_stack(struck).pids("worker-gpu").values(), *([run] if run else [])):
        os.kill(pid, signal.SIGKILL)
    return "both gpu workers" + ("" if run else ", there was no run")


def kill_prefect(struck: Struck) -> str:
    (pid,) = _stack(struck).pids("prefect-server").values()
    os.killpg(pid, signal.SIGKILL)
    return ""


def _stack(struck: Struck) -> StackPlace:
    assert isinstance(struck.there, StackPlace)
    return struck.there


def _wait_for(struck: Struck, flows: Sequence[str]) -> int | None:
    while struck.processes[0].poll() is None:
        if pids := [pid for flow in flows for pid in _stack(struck).pids(flow).values()]:
            return struck.rng.choice(sorted(pids))
        time.sleep(0.2)
    return None


BLOWS: dict[str, Blow] = {
    "SIGKILL of the trainer": Blow(kill_trainer),
    "SIGKILL of MLflow": Blow(kill_service("mlflow")),
    "SIGKILL of PostgreSQL": Blow(kill_service("postgres")),
    "SIGKILL of a training run's process": Blow(kill_run_of("flows.train.train"), StackPlace),
    "MLflow silent for a minute": Blow(silence_mlflow),
    "no file can grow": Blow(fill_disk),
    "SIGKILL of the study's flow process": Blow(kill_run_of("flows.study.study"), StackPlace),
    "slow database": Blow(slow_down_database, slow=True),
    "two studies launched twice": Blow(launch_twice),
    "SIGKILL of a worker": Blow(kill_worker, StackPlace),
    "the clock jumps": Blow(jump_clock),
    "SIGKILL of the Prefect server": Blow(kill_prefect, StackPlace),
    "SIGKILL of the workers and a run": Blow(kill_worker_and_run, StackPlace),
}
