"""Hosts on one machine, connected by virtual Ethernet."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.all.hosts.host import Host


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [tool for tool in ("ip", "unshare", "nsenter", "mount") if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not installed; apt-get install iproute2 util-linux mount"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"this machine refuses network namespaces: {tried.stderr.strip()}" if tried.returncode else None


@pytest.fixture
def network() -> Iterator[Callable[..., Host]]:
    """Return a maker of hosts: the first is the hub, each later one is joined to it by a cable of its own and sees nobody else."""
    if reason := _why_not():
        pytest.skip(reason)
    # Not below pytest's folders, which are closed to PostgreSQL's user.
    disk = Path(tempfile.mkdtemp(prefix="clora-disk-"))
    disk.chmod(0o755)
    hosts: list[Host] = []

    def make(name: str) -> Host:
        # Every host has its disk under the same path, and none has another's.
        host = Host.start(name, disk)
        hosts.append(host)
        host.ip("link", "set", "lo", "up")
        if number := len(hosts) - 1:
            hub, ends = hosts[0], (f"hub{number}", "cable")
            of_hub, own = (("netns", str(one.holder.pid)) for one in (hub, host))
            subprocess.run(["ip", "link", "add", ends[0], *of_hub, "type", "veth", "peer", "name", ends[1], *own], check=True)
            for which, end, of in zip((1, 2), ends, (hub, host), strict=True):
                of.ip("addr", "add", f"10.213.{number}.{which}/24", "dev", end)
                of.ip("link", "set", end, "up")
            # The hub has one address that all cables lead to.
            host.ip("route", "add", "10.213.0.2/32", "via", f"10.213.{number}.1")
        else:
            host.ip("addr", "add", "10.213.0.2/32", "dev", "lo")
        return host

    try:
        yield make
    finally:
        for host in hosts:
            host.end()
        disk.rmdir()
