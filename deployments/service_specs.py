"""Command lines and environments of the local services: two servers, the fork server and the workers."""

import ipaddress
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from clusterlora.errors import BadSettings
from clusterlora.models.device import DEVICES_VARIABLE, THREADS_VARIABLE, named_devices, usable_cores
from deployments import passwords
from deployments.fork_server import SOCKET_VARIABLE

CHECKOUT = Path(__file__).resolve().parents[1]

LOOPBACK = "127.0.0.1"
AUTH_VARIABLE = "CLUSTERLORA_AUTH_MIDDLEWARE"
"""Environment variable with the configuration of auth_middleware.py as JSON: the home of the services and their addresses."""
HOME_VARIABLE, DATABASE_VARIABLE = "CLUSTERLORA_HOME", "CLUSTERLORA_DATABASE_URL"
FORK_SERVER = "fork-server"

_SQLITE_FILE = re.compile(r"(?P<driver>sqlite(\+\w+)?:///)(?P<path>(?!:memory:|file:)[^?]+)(?P<options>.*)")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Addresses of the two servers; loopback unless other machines are to reach them."""

    prefect_port: int
    mlflow_port: int
    host: str = LOOPBACK

    @property
    def prefect(self) -> str:
        """Address of Prefect's UI; its API is below `/api`."""
        return f"http://{self._reachable}:{self.prefect_port}"

    @property
    def mlflow(self) -> str:
        """Address of MLflow's UI and API."""
        return f"http://{self._reachable}:{self.mlflow_port}"

    @property
    def _reachable(self) -> str:
        """Host by which this machine reaches its servers."""
        return LOOPBACK if self.host in ("0.0.0.0", "localhost") else self.host


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """Command line and environment of one process. `health` is a URL that returns 200 once a server is ready; None for a worker."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    health: str | None = None


def checked_host(host: str) -> str:
    """Return an address to listen on. Raises BadSettings if it is not an IP address."""
    try:
        return host if host == "localhost" else str(ipaddress.ip_address(host))
    except ValueError:
        raise BadSettings(f"--host {host!r} is not an IP address; write 127.0.0.1, 0.0.0.0, or an address of this machine") from None


def results_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the folder of the studies' results and the address of their database, as variables for a process in any folder."""
    folder = results_home(environment)
    database = environment.get(DATABASE_VARIABLE) or f"sqlite:///{folder / 'clusterlora.db'}"
    return {HOME_VARIABLE: str(folder), DATABASE_VARIABLE: _absolute(database)}


def _absolute(address: str) -> str:
    """Return the address of a database; an SQLite file, which is meant from the folder of this process, with its whole path."""
    file = _SQLITE_FILE.fullmatch(address)
    return f"{file['driver']}{os.path.realpath(file['path'])}{file['options']}" if file else address


def results_home(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the studies' results: CLUSTERLORA_HOME, else `studies` in the checkout."""
    return Path(os.path.realpath(environment.get(HOME_VARIABLE) or CHECKOUT / "studies"))


def prefect_home(home: Path) -> Path:
    """Return the folder of Prefect's own files, which is in the environment of every process of the services."""
    return home / "prefect"


def bell_file(home: Path) -> Path:
    """Return the file that Prefect's server touches when a run was made, for the workers to ask for it."""
    return home / "run-made"


def client_environment(home: Path, addresses: Addresses, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables of clients of the services; what `environment` says of folder and database holds."""
    return {
        "PREFECT_API_URL": f"{addresses.prefect}/api",
        "PREFECT_HOME": str(prefect_home(home)),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # On SQLite the server returns 503 while another run writes; with many runs the default of five retries is too few. The pause
        # doubles after each: with more than seven, a client would still sleep minutes after the server has recovered.
        "PREFECT_CLIENT_MAX_RETRIES": "7",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "clusterlora",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_TRACKING_URI": addresses.mlflow,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "CLUSTERLORA_STACK_HOME": str(home),
        **results_of(environment),
        # The work pools run `python`: it must be this one, even if the virtual environment is not activated.
        "PATH": _with_our_programs(environment.get("PATH", os.defpath)),
        **passwords.load_or_create(home).client_environment(),
    }


_SELDOM = {
    "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT30S",
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "15",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "15",
}
"""What Prefect's server looks for every 5 seconds by default; each look of an idle server costs CPU time."""


SERVERS = ("prefect-server", "mlflow-server")
_OF_SERVERS = frozenset(
    {
        *(AUTH_VARIABLE, "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_UI_API_URL", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"),
        *("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", *_SELDOM),
    }
)
"""Variables that servers have beside those of the shell and of all clients."""


def servers(home: Path, addresses: Addresses, environment: Mapping[str, str] = os.environ) -> tuple[ServiceSpec, ServiceSpec]:
    """Return the Prefect server and the MLflow server, whose files are all under `home`.

    Args:
        environment: that of the services that run already, by which those that replace dead ones go on.
    """
    auth = json.dumps({"home": str(home), "addresses": asdict(addresses)})
    env = {**environment, **client_environment(home, addresses, environment), AUTH_VARIABLE: auth}
    listen = ("--host", addresses.host, "--port")
    prefect = ServiceSpec(
        name=SERVERS[0],
        # Clients keep connections alive for 25 seconds. If the server closes one earlier, the next request costs a two-second retry.
        argv=(
            *(sys.executable, "-m", "uvicorn", "--factory", "deployments.auth_middleware:prefect", *listen, str(addresses.prefect_port)),
            *("--timeout-keep-alive", "60", "--log-level", "warning"),
        ),
        env={
            **env,
            "PREFECT_SERVER_API_AUTH_STRING": env["PREFECT_API_AUTH_STRING"],
            # A relative URL: the pages call the host and port they were loaded from.
            "PREFECT_UI_API_URL": "/api",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": addresses.prefect,
            **_SELDOM,
        },
        health=f"{addresses.prefect}/api/health",
    )
    mlflow = ServiceSpec(
        name=SERVERS[1],
        argv=(
            *(sys.executable, "-m", "deployments.mlflow_server", "--app-name", "clusterlora", *listen, str(addresses.mlflow_port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"),
            *("--artifacts-destination", str(home / "mlflow" / "artifacts")),
        ),
        env={**env, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        health=f"{addresses.mlflow}/health",
    )
    return prefect, mlflow


def fork_server(home: Path, addresses: Addresses, environment: Mapping[str, str] = os.environ) -> ServiceSpec | None:
    """Return the process that forks runs; None on platforms where forking is not safe, and each run imports its libraries itself.

    Args:
        environment: as of `servers`.
    """
    if sys.platform != "linux":
        return None
    # One thread: a thread pool of a library does not survive a fork.
    env = {**_run_environment(home, addresses, environment), THREADS_VARIABLE: "1"}
    return ServiceSpec(FORK_SERVER, (sys.executable, "-m", "deployments.fork_server"), env)


def workers(
    home: Path, addresses: Addresses, *, n_gpu_workers: int | None, environment: Mapping[str, str] = os.environ
) -> tuple[ServiceSpec, ...]:
    """Return one worker of the cpu pool and one of the gpu pool per device; without a GPU, `n_gpu_workers` of the gpu pool.

    At most half as many workers as devices see several each, which `model.device_map=auto` spreads a base over.

    Args:
        environment: as of `servers`.
    """
    # How often a worker looks whether it is time to ask the server.
    env = {**_run_environment(home, addresses, environment), "PREFECT_WORKER_QUERY_SECONDS": "0.5"}
    specs = [_worker("cpu", "cpu", limit=4, env=env)]
    devices = cuda_devices(environment)
    if devices:
        specs += [
            _worker("gpu", f"gpu-{index}", limit=1, env={**env, DEVICES_VARIABLE: ",".join(share)})
            for index, share in enumerate(_shares(devices, n_gpu_workers or len(devices)))
        ]
        return tuple(specs)
    n_workers = n_gpu_workers or default_workers(environment)
    # Two training runs that each use all cores slow each other down several times.
    threads = str(max(1, usable_cores() // n_workers))
    specs += [_worker("gpu", f"gpu-{index}", limit=1, env={**env, THREADS_VARIABLE: threads}) for index in range(n_workers)]
    return tuple(specs)


def _shares(devices: Sequence[str], n_workers: int) -> list[Sequence[str]]:
    """Return the devices of each worker: neighbours, as many for each as for any other, or one; a process sees one slice of a GPU alone."""
    sliced = any(device.startswith("MIG-") for device in devices)
    n_each = 1 if sliced else max(1, len(devices) // n_workers)
    return [devices[start : start + n_each] for start in range(0, n_each * min(n_workers, len(devices)), n_each)]


def default_workers(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many workers of the gpu pool there are where nobody says how many: one per GPU; without any two, or one on one core."""
    return len(cuda_devices(environment)) or min(2, usable_cores())


def _run_environment(home: Path, addresses: Addresses, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that runs share with the worker and the fork server that start them."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    # Threads of OpenBLAS that have nothing to do turn idle after 16 cycles and not 67 million, of a core on which others train.
    idle = {"OPENBLAS_THREAD_TIMEOUT": environment.get("OPENBLAS_THREAD_TIMEOUT", "4")}
    socket_file = str(home / "fork-server.sock")
    return {**environment, **client_environment(home, addresses, environment), **quiet, **idle, SOCKET_VARIABLE: socket_file}


def without_own(service: str, environment: Mapping[str, str], *, keeps_devices: bool) -> dict[str, str]:
    """Return a service's environment without what only that kind of service has.

    Args:
        keeps_devices: its devices and threads are those of the shell that started it, not its own; else this process's take their place.
    """
    own = {name: value for name, value in environment.items() if not (service in SERVERS and name in _OF_SERVERS)}
    if keeps_devices:
        return own
    devices = {name: os.environ[name] for name in (DEVICES_VARIABLE, THREADS_VARIABLE) if name in os.environ}
    return {name: value for name, value in own.items() if name not in (DEVICES_VARIABLE, THREADS_VARIABLE)} | devices


def _with_our_programs(path: str) -> str:
    """Return a PATH whose first folder has this Python, be it under another spelling."""
    programs, folders = str(Path(sys.executable).parent), path.split(os.pathsep)
    # A relative folder is another one where the services run.
    if Path(folders[0]).is_absolute() and os.path.realpath(folders[0]) == os.path.realpath(programs):
        return path
    return os.pathsep.join([programs, *(folder for folder in folders if folder != programs)])


def cuda_devices(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the values for CUDA_VISIBLE_DEVICES, one per usable GPU or MIG slice; empty without a GPU."""
    visible = environment.get(DEVICES_VARIABLE)
    if visible is not None:
        return named_devices(visible)
    tool = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if tool is None:
        return []
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return parse_devices(listing.stdout) if listing.returncode == 0 else []


def free_port() -> int:
    """Return a loopback port on which nobody listens.

    Drawn from below the kernel's ephemeral range: a server needs seconds until it listens, and no outgoing connection takes the port
    meanwhile.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port


def parse_devices(listing: str) -> list[str]:
    """Return the devices in the output of `nvidia-smi -L`: the UUIDs of a GPU's MIG slices if it has any, else its index."""
    devices: list[str] = []
    gpu: str | None = None
    for line in listing.splitlines():
        if line.startswith("GPU "):
            gpu = line.split(":", 1)[0].removeprefix("GPU ").strip()
            devices.append(gpu)
        elif line.lstrip().startswith("MIG ") and "UUID:" in line:
            if gpu in devices:
                devices.remove(gpu)
            devices.append(line.rpartition("UUID:")[2].strip(" )"))
    return devices


def _worker(pool: str, name: str, *, limit: int, env: Mapping[str, str]) -> ServiceSpec:
    bell = str(bell_file(Path(env["CLUSTERLORA_STACK_HOME"])))
    options = ("--pool", pool, "--name", name, "--limit", str(limit), "--bell", bell)
    return ServiceSpec(name=f"worker-{name}", argv=(sys.executable, "-m", "deployments.local_worker", *options), env=env)
