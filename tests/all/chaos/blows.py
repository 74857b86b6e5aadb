"""Faults that are injected into a study or its services."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.all.chaos.place import Place, Process, StackPlace

NOTHING = "there was none"
"""What a blow says that waited for a process until the study had ended."""


@dataclass(frozen=True)
class Struck:
    """A study under way: where, as which processes, under which name and with which seed."""

    there: Place
    study: str
    seed: int
    processes: list[Process]
    rng: random.Random
    companions: list[Process] = field(default_factory=list)
    """The same study elsewhere: whether it ends well there is not asked."""


_PATIENCE_SECONDS = 600

Strike = Callable[[Struck], str]
"""Does it, and returns in a few words what exactly was done (empty when the name says it all)."""


@dataclass(frozen=True)
class Blow:
    strike: Strike
    place: type[Place] = Place
    slow: bool = False
    """The study reaches its database by the proxy."""
    sabotage: tuple[str, tuple[str, ...]] | None = None
    """A variable of the first launch, see sabotage.py, and the values of which one is drawn; the blow is then struck at once."""
    loses_record: bool = False
    """What was finished is no longer known, so that it may be trained again."""


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
        return "" if pid else NOTHING

    return strike


def kill_worker(struck: Struck) -> str:
    name, pid = struck.rng.choice(sorted(stack_of(struck).pids("worker-").items()))
    os.kill(pid, signal.SIGKILL)
    return name


def kill_worker_and_run(struck: Struck) -> str:
    run = _wait_for(struck, ("flows.train.train", "flows.evaluate.evaluate"))
    for pid in (*stack_of(struck).pids("worker-gpu").values(), *([run] if run else [])):
        os.kill(pid, signal.SIGKILL)
    return "both gpu workers" + ("" if run else ", there was no run")


def kill_prefect(struck: Struck) -> str:
    (pid,) = stack_of(struck).pids("prefect-server").values()
    os.killpg(pid, signal.SIGKILL)
    return ""


def press_ctrl_c(struck: Struck) -> str:
    """Interrupt the command as a terminal does: its whole group of processes at once."""
    with suppress(ProcessLookupError):
        os.killpg(struck.processes[0].pid, signal.SIGINT)
    return ""


def fail_by_itself(struck: Struck) -> str:
    """Wait for the end of a launch that was sabotaged."""
    code = struck.processes[0].wait(_PATIENCE_SECONDS)
    return f"ended with {code}"


def stack_of(struck: Struck) -> StackPlace:
    assert isinstance(struck.there, StackPlace)
    return struck.there


def _wait_for(struck: Struck, flows: Sequence[str]) -> int | None:
    while struck.processes[0].poll() is None:
        if pids := [pid for flow in flows for pid in stack_of(struck).pids(flow).values()]:
            return struck.rng.choice(sorted(pids))
        time.sleep(0.2)
    return None
