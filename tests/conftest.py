"""Real servers for the tests that need one, started once per session on free loopback ports."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from websockets.sync.connection import Connection

from browser.chromium import Tab, browser, find_browser

START_SECONDS = 240

# Threads of one product wait for each other by spinning: beside real servers, two on two cores take several times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def free_port() -> int:
    """Return a loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Return whether a server answers this address with 200."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status == 200
    except OSError:
        return False


class Serve(Protocol):
    """Runs a server of a Python module inside a block, from the moment it answers; gives its address."""

    def __call__(
        self, name: str, arguments: Sequence[str], *, health: str, folder: Path, environment: Mapping[str, str]
    ) -> AbstractContextManager[str]: ...


@contextmanager
def _serve(name: str, arguments: Sequence[str], *, health: str, folder: Path, environment: Mapping[str, str]) -> Generator[str]:
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", name, "server", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"http://127.0.0.1:{port}{health}"):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the {name} server did not start; the end of its log:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Return what runs a server."""
    return _serve


@pytest.fixture(scope="session")
def mlflow_server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URI of a real MLflow server with a SQLite store and local artifacts, on loopback."""
    folder = tmp_path_factory.mktemp("mlflow")
    arguments = ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    arguments += ["--artifacts-destination", str(folder / "artifacts")]
    # Its job queues are four more processes, for features that nobody here uses.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with serve("mlflow", arguments, health="/health", folder=folder, environment=environment) as address:
        yield address


@pytest.fixture(scope="session")
def chromium() -> Iterator[Connection]:
    """Return the connection to a running headless browser."""
    program = find_browser()
    if program is None:
        pytest.skip("no browser is installed; apt-get install chromium")
    with browser(program) as connection:
        yield connection


@pytest.fixture(scope="module")
def tab(chromium: Connection) -> Iterator[Tab]:
    """Return a fresh tab of the browser."""
    tab = Tab(chromium)
    yield tab
    tab.close()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL, without a database name, of a real PostgreSQL with an empty cluster."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("PostgreSQL is not installed; apt-get install postgresql")
    folder = tmp_path_factory.mktemp("postgres")
    # PostgreSQL refuses to run as root.
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        # pytest's temporary folders are closed to other users.
        folder = Path(subprocess.check_output([*as_user, "mktemp", "-d", "/tmp/clusterlora-pg-XXXXXX"], cwd="/", text=True).strip())
    port, data = free_port(), folder / "data"
    pg_ctl = [*as_user, str(programs[-1].with_name("pg_ctl")), "-D", str(data), "-w"]
    run_in_root = partial(subprocess.run, cwd="/", check=True, stdout=subprocess.DEVNULL)
    run_in_root([*as_user, str(programs[-1]), "-D", str(data), "-A", "trust", "-U", "tester", "-E", "UTF8", "--no-sync"])
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run_in_root([*pg_ctl, "-l", str(folder / "log"), "-o", options, "start"])
    yield f"postgresql://tester:secret@127.0.0.1:{port}"
    run_in_root([*pg_ctl, "-m", "immediate", "stop"])
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """Return the URL of a fresh, empty database."""
    import psycopg
    from psycopg import sql

    name = f"study_{time.monotonic_ns()}"
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    return f"{postgres_server}/{name}"


# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis_settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.register_profile("long", hypothesis_settings.get_profile("any-machine"), max_examples=4_000)
hypothesis_settings.load_profile("any-machine")
