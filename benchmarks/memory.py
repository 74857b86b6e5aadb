"""Memory of a whole installation while a command runs: `python -m benchmarks.memory LOG -- clusterlora study run ...`.

CLUSTERLORA_HOME has to be set: servers, workers and runs are found by it. Every three seconds a line of JSON is written to LOG: the seconds
since the start, and the proportional set size of all these processes together, in which pages that several share, as forks do, count once.
Linux alone.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

_PAUSE_SECONDS = 3.0
_HOME = "CLUSTERLORA_HOME"


def together(home: str) -> int:
    """Return the bytes of all processes that were started with this home; those that end meanwhile count for nothing."""
    mine = f"{_HOME}={home}".encode()
    return sum(_proportional(process) for process in Path("/proc").glob("[0-9]*") if _has(process, mine))


def peak(log: Path) -> tuple[float, float]:
    """Return (the most gigabytes at once, minutes until the last line) of a log."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return max(line["bytes"] for line in lines) / 1e9, lines[-1]["seconds"] / 60


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
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    if _HOME not in os.environ:
        parser.error(f"{_HOME} is not set: give the installation a home of its own")
    # As the services have it.
    home = os.environ[_HOME] = str(Path(os.environ[_HOME]).resolve())
    began = time.monotonic()
    with options.log.open("w", encoding="utf-8") as file, subprocess.Popen(options.command[options.command[:1] == ["--"] :]) as running:
        while running.poll() is None:
            line = {"seconds": round(time.monotonic() - began, 1), "bytes": together(home)}
            file.write(f"{json.dumps(line)}\n")
            file.flush()
            time.sleep(_PAUSE_SECONDS)
    return running.returncode


if __name__ == "__main__":
    raise SystemExit(main())
