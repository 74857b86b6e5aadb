"""What the local stack is made of: two servers and the workers, as command lines and environments."""

import ipaddress
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from clusterlora.errors import BadSettings
from deployments import passwords
from deployments.warm import SOCKET

CHECKOUT = Path(__file__).resolve().parents[1]

LOOPBACK = "127.0.0.1"
DOOR = "CLUSTERLORA_DOOR"
"""Variable that tells a server's door (door.py) where the stack is and what it listens on, as JSON."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the two servers listen; loopback unless others are to be let in."""

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
        """The address by which this machine reaches its servers."""
        return LOOPBACK if self.host in ("0.0.0.0", "localhost") else self.host


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the stack. `health` is the address that answers 200 once it serves; workers have none."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    health: str | None = None


def checked_host(host: str) -> str:
    """Return an address to listen on. Raises BadSettings when it is none."""
    try:
        return host if host == "localhost" else str(ipaddress.ip_address(host))
    except ValueError:
        raise BadSettings(f"--host {host!r} is not an IP address; write 127.0.0.1, 0.0.0.0, or an address of this machine") from None


def results_home() -> Path:
    """Return where studies leave their results: CLUSTERLORA_HOME, else `studies` in the checkout."""
    return Path(os.environ.get("CLUSTERLORA_HOME") or CHECKOUT / "studies").resolve()


def client_environment(home: Path, addresses: Addresses) -> dict[str, str]:
    """Return the variables through which a process finds the stack; a study database chosen by the user is kept."""
    results = results_home()
    return {
        "PREFECT_API_URL": f"{addresses.prefect}/api",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # On SQLite the server answers 503 while another run writes; many runs at once need more patience than the default five tries.
        # A client sleeps twice as long after each: with more than these four minutes it would sleep on while the server is well again.
        "PREFECT_CLIENT_MAX_RETRIES": "7",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "clusterlora",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_TRACKING_URI": addresses.mlflow,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "CLUSTERLORA_HOME": str(results),
        "CLUSTERLORA_DATABASE_URL": os.environ.get("CLUSTERLORA_DATABASE_URL") or f"sqlite:///{results / 'clusterlora.db'}",
        # The deployments say `python`: it must be this one, also when the virtual environment is not activated.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        **passwords.of(home).of_clients(),
    }


def servers(home: Path, addresses: Addresses) -> tuple[Service, Service]:
    """Return the Prefect server and the MLflow server, which keep everything under `home`."""
    door = json.dumps({"home": str(home), "addresses": asdict(addresses)})
    env = {**os.environ, **client_environment(home, addresses), DOOR: door}
    listen = ("--host", addresses.host, "--port")
    prefect = Service(
        name="prefect-server",
        # Clients keep connections for 25 seconds. Where a server has closed one before, asking anything costs the two seconds of a retry.
        argv=(
            *(sys.executable, "-m", "uvicorn", "--factory", "deployments.door:prefect", *listen, str(addresses.prefect_port)),
            *("--timeout-keep-alive", "60", "--log-level", "warning"),
        ),
        env={
            **env,
            "PREFECT_SERVER_API_AUTH_STRING": env["PREFECT_API_AUTH_STRING"],
            # Its pages ask whoever served them, by whatever name and port that was reached.
            "PREFECT_UI_API_URL": "/api",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": addresses.prefect,
        },
        health=f"{addresses.prefect}/api/health",
    )
    mlflow = Service(
        name="mlflow-server",
        argv=(
            *(sys.executable, "-m", "mlflow", "server", "--app-name", "clusterlora", *listen, str(addresses.mlflow_port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"),
            *("--artifacts-destination", str(home / "mlflow" / "artifacts")),
        ),
        env={**env, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        health=f"{addresses.mlflow}/health",
    )
    return prefect, mlflow


def warm_starter(home: Path, addresses: Addresses) -> Service | None:
    """Return what forks runs; None where forking is not safe, and a run imports everything itself."""
    if sys.platform != "linux":
        return None
    # A thread that a library keeps would not come along into a fork.
    env = {**_run_environment(home, addresses), "OMP_NUM_THREADS": "1"}
    return Service("warm", (sys.executable, "-m", "deployments.warm"), env)


def workers(home: Path, addresses: Addresses, *, n_gpu_workers: int | None) -> tuple[Service, ...]:
    """Return one worker for the cpu pool, and for the gpu pool one per device (`n_gpu_workers` of them without a GPU)."""
    # Each question costs the server a twentieth of a second of a core.
    env = {**_run_environment(home, addresses), "PREFECT_WORKER_QUERY_SECONDS": "3"}
    found = [_worker("cpu", "cpu", limit=4, env=env)]
    devices = cuda_devices()
    if devices:
        found += [
            _worker("gpu", f"gpu-{index}", limit=1, env={**env, "CUDA_VISIBLE_DEVICES": device})
            for index, device in enumerate(devices[:n_gpu_workers])
        ]
        return tuple(found)
    n_cores = usable_cores()
    n_workers = n_gpu_workers or min(2, n_cores)
    # Two trainings that each take all cores slow each other down several times.
    threads = str(max(1, n_cores // n_workers))
    found += [_worker("gpu", f"gpu-{index}", limit=1, env={**env, "OMP_NUM_THREADS": threads}) for index in range(n_workers)]
    return tuple(found)


def _run_environment(home: Path, addresses: Addresses) -> dict[str, str]:
    """Return what runs and whatever starts them have in common."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    return {**os.environ, **client_environment(home, addresses), **quiet, SOCKET: str(home / "warm.sock")}


def cuda_devices() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES may be set to, one entry per usable GPU (or MIG slice); empty without any."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device.strip() for device in chosen.split(",") if device.strip() not in ("", "-1")]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return parse_devices(listing.stdout) if listing.returncode == 0 else []


def usable_cores() -> int:
    """Return how many cores this process may use: `taskset`, a job scheduler or a container may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def free_port() -> int:
    """Return a loopback port nobody listens on.

    Drawn from below those that the kernel gives to whoever connects somewhere: a server needs seconds until it listens, and hardly
    anybody comes upon its port in the meantime.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port


def parse_devices(listing: str) -> list[str]:
    """Return the device names in the output of `nvidia-smi -L`: MIG slices where a GPU is cut into them, else its index."""
    devices: list[str] = []
    whole: str | None = None
    for line in listing.splitlines():
        if line.startswith("GPU "):
            whole = line.split(":", 1)[0].removeprefix("GPU ").strip()
            devices.append(whole)
        elif line.lstrip().startswith("MIG ") and "UUID:" in line:
            if whole in devices:
                devices.remove(whole)
            devices.append(line.rpartition("UUID:")[2].strip(" )"))
    return devices


def _worker(pool: str, name: str, *, limit: int, env: Mapping[str, str]) -> Service:
    command = ("worker", "start", "--pool", pool, "--type", "process", "--name", name, "--limit", str(limit))
    return Service(name=f"worker-{name}", argv=(sys.executable, "-m", "prefect", *command), env=env)
