"""Memory of a whole installation while a command runs: `python -m benchmarks.memory [--kill MINUTES] LOG -- clusterlora study run ...`.

CLUSTERLORA_HOME has to be set: servers, workers and runs are found by it. Every three seconds a line of JSON is written to LOG: the seconds
since the start, and the proportional set size of all these processes together, in which pages that several share, as forks do, count once.
With `--kill MINUTES` the workers that train, and a run that trains, are killed then, and LOG says so. Linux alone.
"""

import argparse
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PAUSE_SECONDS = 3.0
_HOME = "CLUSTERLORA_HOME"
_TRAINING = ("--pool gpu", "flows.train.train")
"""What the command lines of the workers that train, and of the runs, have."""


def together(home: str) -> int:
    """Return the bytes of all processes that were started with this home; those that end meanwhile count for nothing."""
    mine = f"{_HOME}={home}".encode()
    return sum(_proportional(process) for process in Path("/proc").glob("[0-9]*") if _has(process, mine))


def kill_training(home: str) -> list[str]:
    """Kill the workers that train and a run of theirs, of this home, and return their command lines; nothing where no run trains."""
    mine = f"{_HOME}={home}".encode()
    found = [(process, _command(process)) for process in Path("/proc").glob("[0-9]*") if _has(process, mine)]
    by_kind = {kind: [one for one in found if kind in one[1]] for kind in _TRAINING}
    workers, runs = by_kind.values()
    killed = [*workers, *runs[:1]] if runs else []
    for process, _ in killed:
        os.kill(int(process.name), signal.SIGKILL)
    return [command for _, command in killed]


def peak(log: Path) -> tuple[float, float]:
    """Return (the most gigabytes at once, minutes until the last line) of a log."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return max(line["bytes"] for line in lines) / 1e9, lines[-1]["seconds"] / 60


def killed_after(log: Path) -> float | None:
    """Return after how many minutes workers and a run were killed; None where none were."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return next((line["seconds"] / 60 for line in lines if line.get("killed")), None)


def _command(process: Path) -> str:
    try:
        return " ".join((process / "cmdline").read_bytes().decode(errors="replace").split("\0"))
    except OSError:
        return ""


def _has(process: Path, variable: bytes) -> bool:
    try:
        return variable in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _proportional(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, write the log, and return the command's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("--kill", type=float, metavar="MINUTES", help="Kill workers and a run then, or as soon as one trains.")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    if _HOME not in os.environ:
        parser.error(f"{_HOME} is not set: give the installation a home of its own")
    # As the services have it.
    home = os.environ[_HOME] = str(Path(os.environ[_HOME]).resolve())
    began = time.monotonic()
    with options.log.open("w", encoding="utf-8") as file, subprocess.Popen(options.command[options.command[:1] == ["--"] :]) as running:
        while running.poll() is None:
            line: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "bytes": together(home)}
            if options.kill is not None and line["seconds"] >= 60 * options.kill and (killed := kill_training(home)):
                line["killed"], options.kill = killed, None
            file.write(f"{json.dumps(line)}\n")
            file.flush()
            time.sleep(_PAUSE_SECONDS)
    return running.returncode


if __name__ == "__main__":
    raise SystemExit(main())
