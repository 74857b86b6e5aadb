"""Real services in a folder of their own, each of which can be killed and restarted at the same address."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from clusterlora.ports.stores import Stores
from clusterlora.verify import LiveWork, verify
from clusterlora.wiring import from_environment
from deployments.service_specs import free_port
from tests.all.chaos import direct
from tests.all.chaos.slow_proxy import SlowProxy
from tests.fixtures.servers import INITDB, START_SECONDS
from tests.fixtures.session import FOLDER

CHECKOUT = Path(__file__).resolve().parents[3]
CLOCK = Path(__file__).with_name("clock.c")
POSTGRES_USER = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
"""PostgreSQL refuses to run as root."""


@dataclass(frozen=True)
class Process:
    """A process of ours, however it was started. `poll` is its exit status, None while it runs."""

    pid: int
    poll: Callable[[], int | None]

    def wait(self, seconds: float) -> int:
        """Return how it ended; one that hangs for so long is killed."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.05)
        return code


@dataclass
class Place:
    """PostgreSQL and MLflow; a study is one process (direct.py)."""

    services: ClassVar[tuple[str, ...]] = ("postgres", "mlflow")

    folder: Path
    ports: dict[str, int]
    proxy: SlowProxy
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return _without_addresses() | {
            "PYTHONPATH": str(CHECKOUT),
            "CLUSTERLORA_HOME": str(self.folder / "studies"),
            "CLUSTERLORA_DATABASE_URL": self.database(self.ports.get("postgres", 0)),
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.mlflow_port}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            **self._moved_clock(),
        }

    @property
    def mlflow_port(self) -> int:
        return self.ports["mlflow"]

    def database(self, port: int) -> str:
        return f"postgresql://tester:x@127.0.0.1:{port}/postgres"

    def open(self) -> None:
        (self.folder / "clock").write_bytes(bytes(8))
        if shutil.which("gcc"):
            subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", str(self.folder / "clock.so"), str(CLOCK), "-ldl"], check=True)
        if "postgres" in self.ports:
            data = ["-D", str(self.folder / "postgres"), "-A", "trust", "-U", "tester", "-E", "UTF8", "--no-sync"]
            subprocess.run([*POSTGRES_USER, str(INITDB[-1]), *data], cwd="/", check=True, stdout=subprocess.DEVNULL)
        with ThreadPoolExecutor() as threads:
            list(threads.map(self.start, self.ports))

    def close(self) -> None:
        for name in list(self.running):
            self.kill(name)

    def start(self, name: str) -> None:
        """Start a service and wait until it answers."""
        deadline = time.monotonic() + START_SECONDS
        log = self.folder / f"{name}.log"
        while name not in self.running or not self._answers(name):
            assert time.monotonic() < deadline, f"{name} does not start; {log}"
            # PostgreSQL ends at once as long as children of the one that was killed hold its memory.
            if name not in self.running or self.running[name].poll() is not None:
                if name == "postgres":
                    (self.folder / "postgres" / "postmaster.pid").unlink(missing_ok=True)
                with log.open("ab") as output:
                    self.running[name] = subprocess.Popen(
                        self._command(name), cwd="/", env=self.environment, stdout=output, stderr=output, start_new_session=True
                    )
            time.sleep(0.3)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        # PostgreSQL's children lead sessions of their own, and end with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def launch(self, study: str, seed: int, *, slow: bool = False, more: Mapping[str, str] | None = None) -> Process:
        """Start a study, or start it again; its database is reached by the slow road if asked for. `more` are further variables."""
        addresses = {"CLUSTERLORA_DATABASE_URL": self.database(self.proxy.port)} if slow else {}
        direct.start_server(self.environment)
        environment = {**self.environment, **addresses, **(more or {})}
        process = direct.start(study, seed, environment, self.folder / f"{study}.log")
        assert process.pid is not None
        return Process(process.pid, lambda: process.exitcode)

    def set_clock(self, hours: int) -> None:
        """Move the wall clock of everything here; the file keeps its length, for processes look into it at this very moment."""
        with (self.folder / "clock").open("r+b") as file:
            file.write(struct.pack("l", 3600 * hours))

    def last_output(self, study: str) -> str:
        """Return the end of the output of a study's processes."""
        return (self.folder / f"{study}.log").read_text(encoding="utf-8", errors="replace")[-1500:]

    def stores(self) -> Stores:
        return from_environment(self.environment)

    def findings(self, study: str, *, repair: bool) -> list[dict[str, Any]]:
        """Return what `clusterlora study verify` finds when nothing of the study runs."""
        findings = verify([study], self.stores(), live=lambda _: LiveWork(), repair=repair)
        return [{"what": f.what, "repaired": f.repaired} for f in findings]

    def _moved_clock(self) -> dict[str, str]:
        """Return the variables that give a process the clock of this place."""
        library = self.folder / "clock.so"
        return {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self.folder / "clock")} if library.exists() else {}

    def _command(self, name: str) -> list[str]:
        port = str(self.ports[name])
        if name == "postgres":
            options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}"]
            return [*POSTGRES_USER, str(INITDB[-1].with_name("postgres")), "-D", str(self.folder / "postgres"), "-p", port, *options]
        argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
        return [*argv, "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", f"{self.folder}/artifacts"]

    def _answers(self, name: str) -> bool:
        try:
            if name == "mlflow":
                return urllib.request.urlopen(f"{self.environment['MLFLOW_TRACKING_URI']}/health", timeout=2).status == 200
            import psycopg

            psycopg.connect(self.database(self.ports["postgres"]), connect_timeout=2).close()
        except Exception:  # noqa: BLE001  (whatever it is, it is not there)
            return False
        return True


@dataclass
class SqlitePlace(Place):
    """The study database is the file that a study has by default; MLflow as everywhere."""

    services: ClassVar[tuple[str, ...]] = ("mlflow",)

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in super().environment.items() if name != "CLUSTERLORA_DATABASE_URL"}

    @property
    def mlflow_port(self) -> int:
        return self.ports["mlflow"]

    def database(self, port: int) -> str:
        del port
        return f"sqlite:///{self.folder}/studies/clusterlora.db"


@dataclass
class SmallDiskPlace(Place):
    """The studies are on a disk of their own of 128 MB."""

    def open(self) -> None:
        studies = self.folder / "studies"
        studies.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(studies)], check=True)
        super().open()

    def close(self) -> None:
        super().close()
        subprocess.run(["umount", "--lazy", str(self.folder / "studies")], check=False)


@dataclass
class StackPlace(Place):
    """PostgreSQL, and the local stack as `clusterlora up` starts it: Prefect, MLflow, workers. A study is `clusterlora study run`."""

    services: ClassVar[tuple[str, ...]] = ("postgres",)

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"CLUSTERLORA_STACK_HOME": str(self.folder / "stack")}

    def _moved_clock(self) -> dict[str, str]:
        return {}

    @property
    def mlflow_port(self) -> int:
        return self._books["ports"]["mlflow_port"]

    @property
    def _books(self) -> dict[str, Any]:
        return json.loads((self.folder / "stack" / "stack.json").read_text(encoding="utf-8"))

    def open(self) -> None:
        # Its servers get ports of their own, so that they never meet another stack's.
        (self.folder / "stack").mkdir(mode=0o700)
        ports = {"prefect_port": free_port(), "mlflow_port": free_port()}
        (self.folder / "stack" / "stack.json").write_text(json.dumps({"ports": ports}), encoding="utf-8")
        super().open()
        self.cli("up", "--workers", "2")

    def close(self) -> None:
        self.cli("down")
        super().close()

    def launch(self, study: str, seed: int, *, slow: bool = False, more: Mapping[str, str] | None = None) -> Process:
        assert not slow, "the workers have their database's address from `clusterlora up`"
        options = ["--config", str(direct.SETTINGS), "--name", study, "--set", f"recipe.seed={seed}", "--workers", "2", "--no-wait"]
        with (self.folder / f"{study}.log").open("ab") as output:
            argv = [*_PROGRAM, "study", "run", *options]
            environment = {**self.environment, **(more or {})}
            process = subprocess.Popen(
                argv, cwd=CHECKOUT, env=environment, stdout=output, stderr=output, start_new_session=True, preexec_fn=_with_ctrl_c
            )
        return Process(process.pid, process.poll)

    def findings(self, study: str, *, repair: bool) -> list[dict[str, Any]]:
        return json.loads(self.cli("study", "verify", study, "--json", *(["--repair"] if repair else [])))

    def pids(self, kind: str) -> dict[str, int]:
        """Return the processes of the stack whose name begins so (`worker-`, `prefect-server`), or that execute runs of a flow."""
        if kind.startswith("flows."):
            processes = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
            return {folder.name: int(folder.name) for folder in processes if self._executes(folder, kind)}
        return {name: entry["pid"] for name, entry in self._books["processes"].items() if name.startswith(kind)}

    def _executes(self, folder: Path, flow: str) -> bool:
        try:
            ours = f"CLUSTERLORA_STACK_HOME={self.folder}".encode() in (folder / "environ").read_bytes()
            return ours and flow.encode() in (folder / "cmdline").read_bytes()
        except OSError:
            return False  # it has just ended

    def cli(self, *arguments: str) -> str:
        done = subprocess.run([*_PROGRAM, *arguments], cwd=CHECKOUT, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or arguments[:2] == ("study", "verify"), f"{arguments}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
        return done.stdout


@dataclass
class ClockStackPlace(StackPlace):
    """The same stack with a clock that can be moved: Prefect's, MLflow's, the workers', the runs' and PostgreSQL's."""

    def _moved_clock(self) -> dict[str, str]:
        return Place._moved_clock(self)


@dataclass
class ColdStackPlace(StackPlace):
    """The same stack, which each study finds down and starts itself."""

    def launch(self, study: str, seed: int, *, slow: bool = False, more: Mapping[str, str] | None = None) -> Process:
        if more:
            self.cli("down")
        return super().launch(study, seed, slow=slow, more=more)

    def findings(self, study: str, *, repair: bool) -> list[dict[str, Any]]:
        # The study that started the servers has stopped them.
        self.cli("up", "--workers", "2")
        return super().findings(study, repair=repair)


_PROGRAM = [sys.executable, "-c", "from tests.all.chaos.sabotage import main; raise SystemExit(main())"]
_ADDRESSES = ("CLUSTERLORA_", "PREFECT_", "MLFLOW_")


def _with_ctrl_c() -> None:
    # A shell starts what runs in the background with Ctrl-C ignored, and its children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _without_addresses() -> dict[str, str]:
    # The session's own mark stays, by which it finds what is left of it.
    return {name: value for name, value in os.environ.items() if name == FOLDER or not name.startswith(_ADDRESSES)}


@contextmanager
def place(kind: type[Place] = Place) -> Generator[Place]:
    """Yield running services with empty stores, and remove them afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="clora-chaos-"))
    folder.chmod(0o777)
    ports = {name: free_port() for name in kind.services}
    there = kind(folder, ports, SlowProxy(ports.get("postgres", 0)))
    try:
        there.open()
        yield there
    finally:
        there.close()
        there.proxy.close()
        shutil.rmtree(folder, ignore_errors=True)
