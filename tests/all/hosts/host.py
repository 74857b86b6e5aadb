"""A host on this machine: a network namespace, and a disk that no other host can see."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.fixtures.session import FOLDER

CHECKOUT = Path(__file__).resolve().parents[3]
START_SECONDS = 60


@dataclass
class Host:
    """A network namespace and a mount namespace in which `disk` is a file system of its own. Both end with the last process inside."""

    name: str
    disk: Path
    holder: "subprocess.Popen[bytes]"
    """Keeps the namespaces while nothing else runs in them."""
    network: str
    spawned: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @classmethod
    def start(cls, name: str, disk: Path) -> Self:
        """Start a host that has an empty disk and no cable yet."""
        script = f"mount -t tmpfs none {disk} && cd {disk} && chmod 1777 . && mkdir -m 1777 tmp && mkdir studies && exec sleep infinity"
        holder = subprocess.Popen(["unshare", "--net", "--mount", "sh", "-c", script], start_new_session=True)
        host = cls(name, disk, holder, "")
        deadline = time.monotonic() + START_SECONDS
        try:
            # Until it has its own, it is in our namespaces.
            while "studies" not in host.files(""):
                assert holder.poll() is None, f"{name} ended with {holder.poll()} before it had its disk"
                assert time.monotonic() < deadline, f"{name} did not get its disk"
                time.sleep(0.05)
            host.network = _network_of(holder.pid)
            assert host.network, f"{name} ended right after its start"
        except BaseException:
            holder.kill()
            raise
        return host

    def command(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", "--target", str(self.holder.pid), "--net", "--mount", f"--wdns={CHECKOUT}", *argv]

    def spawn(self, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
        """Start a process that ends with the host at the latest."""
        with log.open("wb") as output:
            process = subprocess.Popen(self.command(argv), env=dict(env), stdout=output, stderr=output, start_new_session=True)
        self.spawned.append(process)

    def run(self, argv: Sequence[str], *, env: Mapping[str, str] = os.environ) -> str:
        done = subprocess.run(self.command(argv), env=dict(env), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(argv[:6])} on {self.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def succeeds(self, argv: Sequence[str]) -> bool:
        return subprocess.run(self.command(argv), capture_output=True, check=False).returncode == 0

    def ip(self, *words: str) -> None:
        self.run(["ip", *words])

    def end(self) -> None:
        """Kill whatever runs here, however it was started; namespaces, cables and disk end with the last process."""
        while pids := [int(folder.name) for folder in Path("/proc").iterdir() if _network_of(folder.name) == self.network]:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for process in (*self.spawned, self.holder):
            process.wait()

    def files(self, folder: str) -> list[str]:
        """Return what lies in a folder of this host's disk."""
        return self.run(["sh", "-c", f"ls {self.disk / folder} 2>/dev/null || true"]).split()

    def environment(self, **addresses: str) -> dict[str, str]:
        """Return an environment in which every file that is written lands on this host's disk."""
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "SYSTEMROOT", FOLDER) if name in os.environ}
        return kept | {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": str(CHECKOUT),
            "HOME": str(self.disk),
            "TMPDIR": str(self.disk / "tmp"),
            "CLUSTERLORA_HOME": str(self.disk / "studies"),
            "CLUSTERLORA_CACHE": str(self.disk / "cache"),
            "PREFECT_HOME": str(self.disk / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "clusterlora",
            "CLUSTERLORA_FORK_SERVER": str(self.disk / "warm.sock"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "TQDM_DISABLE": "1",
            **addresses,
        }


def _network_of(process: int | str) -> str:
    """Return which network namespace a process is in; empty when there is no such process, or a zombie."""
    try:
        return str(Path(f"/proc/{process}/ns/net").readlink())
    except OSError:
        return ""
