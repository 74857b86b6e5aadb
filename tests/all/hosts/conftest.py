"""Hosts on one machine: network namespaces joined by virtual cables, each with a disk that no other can see."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]


@dataclass
class Host:
    """A network namespace and a mount namespace in which `disk` is a file system of its own."""

    name: str
    address: str
    disk: Path
    holder: "subprocess.Popen[bytes]"
    running: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def command(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", "--target", str(self.holder.pid), "--net", "--mount", f"--wdns={CHECKOUT}", *argv]

    def start(self, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as output:
            process = subprocess.Popen(self.command(argv), env=dict(env), stdout=output, stderr=output, start_new_session=True)
        self.running.append(process)
        return process

    def run(self, argv: Sequence[str], *, env: Mapping[str, str] = os.environ) -> str:
        done = subprocess.run(self.command(argv), env=dict(env), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(argv[:6])} on {self.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def succeeds(self, argv: Sequence[str]) -> bool:
        return subprocess.run(self.command(argv), capture_output=True, check=False).returncode == 0

    def files(self, folder: str) -> list[str]:
        """Return what lies in a folder of this host's disk."""
        return self.run(["sh", "-c", f"ls {self.disk / folder} 2>/dev/null || true"]).split()

    def environment(self, **addresses: str) -> dict[str, str]:
        """Return an environment in which every file that is written lands on this host's disk."""
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "SYSTEMROOT") if name in os.environ}
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
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            "TQDM_DISABLE": "1",
            **addresses,
        }


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [tool for tool in ("ip", "nsenter", "mount") if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not installed; apt-get install iproute2 util-linux mount"
    name = f"clora-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"this machine refuses network namespaces: {tried.stderr.strip()}"
    _ip("netns", "delete", name)
    return None


@pytest.fixture
def network() -> Iterator[Callable[..., Host]]:
    """Return a maker of hosts: the first is the hub, each later one is joined to it by a cable of its own and sees nobody else."""
    if reason := _why_not():
        pytest.skip(reason)
    # Not below pytest's folders, which are closed to PostgreSQL's user.
    disk = Path(tempfile.mkdtemp(prefix="clora-disk-"))
    disk.chmod(0o755)
    hosts: list[Host] = []
    prefix = f"clora{os.getpid()}"

    def make(name: str) -> Host:
        space = f"{prefix}-{name}"
        _ip("netns", "add", space)
        # Every host has its disk under the same path, and none has another's.
        script = f"mount -t tmpfs none {disk} && cd {disk} && chmod 1777 . && mkdir tmp studies && chmod 1777 tmp && exec sleep infinity"
        holder = subprocess.Popen(["ip", "netns", "exec", space, "sh", "-c", script], start_new_session=True)
        number = len(hosts)
        host = Host(name, f"10.213.{number}.2", disk, holder)
        hosts.append(host)
        _ip("-n", space, "link", "set", "lo", "up")
        if number:
            hub = f"{prefix}-{hosts[0].name}"
            _ip("link", "add", f"{prefix}h{number}", "type", "veth", "peer", "name", f"{prefix}g{number}")
            _ip("link", "set", f"{prefix}h{number}", "netns", hub)
            _ip("link", "set", f"{prefix}g{number}", "netns", space)
            _ip("-n", hub, "addr", "add", f"10.213.{number}.1/24", "dev", f"{prefix}h{number}")
            _ip("-n", space, "addr", "add", f"10.213.{number}.2/24", "dev", f"{prefix}g{number}")
            _ip("-n", hub, "link", "set", f"{prefix}h{number}", "up")
            _ip("-n", space, "link", "set", f"{prefix}g{number}", "up")
            # The hub has one address that all cables lead to.
            _ip("-n", space, "route", "add", "10.213.0.2/32", "via", f"10.213.{number}.1")
        else:
            _ip("-n", space, "addr", "add", "10.213.0.2/32", "dev", "lo")
        deadline = time.monotonic() + 20
        while "studies" not in (host.files("") if host.holder.poll() is None else []):
            assert time.monotonic() < deadline, f"{name} did not get its disk"
            time.sleep(0.1)
        return host

    try:
        yield make
    finally:
        for host in hosts:
            for process in (*reversed(host.running), host.holder):
                if process.poll() is None:
                    os.killpg(process.pid, 9)
                process.wait()
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", f"{prefix}-{host.name}"], check=False)
        disk.rmdir()
