"""Runs forked by the fork server behave as if started by `python -m`, and end with their client."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest

from deployments import fork_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux alone")

CHECKOUT = Path(__file__).resolve().parents[2]
LOG = "log"
IMPORTED = "colorsys"
"""A module that nothing else imports."""
PROBE = f"""
import os, signal, sys, time
print(sys.argv[1:], os.environ.get("PREFECT__FLOW_RUN_ID"), os.getcwd() == sys.path[0], "{IMPORTED}" in sys.modules, __name__, flush=True)
if sys.argv[1] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    print(os.getpid(), os.getppid(), flush=True)
    time.sleep(3600)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # Longer than a socket address may be.
    folder = tmp_path / ("a" * 100)
    folder.mkdir()
    (folder / "probe.py").write_text(PROBE)
    return folder


@pytest.fixture
def listening(folder: Path) -> Iterator[dict[str, str]]:
    """Return the environment of clients of a running fork server."""
    yield from _listening(folder, IMPORTED)


def _listening(folder: Path, *imported: str, **variables: str) -> Iterator[dict[str, str]]:
    address = str(folder / "fork-server.sock")
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), fork_server.SOCKET_VARIABLE: address}
    script = (
        "from deployments import fork_server; from pathlib import Path; "
        f"fork_server._run(fork_server.listen(Path({address!r}), {list(imported)!r}))"
    )
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", script], env=env | variables, cwd=folder, stderr=log, start_new_session=True)
    while not (folder / "fork-server.sock").exists():
        assert process.poll() is None
        time.sleep(0.05)
    yield env
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _start(env: dict[str, str], folder: Path, argument: str) -> "subprocess.Popen[str]":
    return _client({**env, "PREFECT__FLOW_RUN_ID": argument}, folder, "probe", argument)


def _client(env: dict[str, str], folder: Path, *argv: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "deployments.fork_server", *argv]
    return subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, text=True)


def _pids(run: "subprocess.Popen[str]") -> tuple[int, int]:
    """Return the pids of a waiting run and of the process that watches it."""
    assert run.stdout
    run.stdout.readline()
    pid, watcher = run.stdout.readline().split()
    return int(pid), int(watcher)


def _await_end(pid: int) -> None:
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state in "ZX":
            return
        time.sleep(0.05)


def test_a_forked_run_behaves_like_one_started_alone(listening: dict[str, str], folder: Path) -> None:
    for code in ("0", "3"):
        run = _start(listening, folder, code)
        assert run.communicate()[0] == f"['{code}'] {code} True True __main__\n"
        assert run.returncode == int(code)


@pytest.mark.parametrize(
    "changed", [{"MKL_NUM_THREADS": "13"}, {fork_server.SOCKET_VARIABLE: "/nowhere/fork-server.sock"}, {fork_server.SOCKET_VARIABLE: ""}]
)
def test_a_client_with_another_environment_or_without_a_server_runs_the_module_itself(
    listening: dict[str, str], folder: Path, changed: dict[str, str]
) -> None:
    run = _start({**listening, **changed}, folder, "4")
    assert run.communicate()[0] == "['4'] 4 True False __main__\n"
    assert run.returncode == 4
    is_refused = "MKL_NUM_THREADS" in changed
    assert (folder / LOG).read_text() == ("probe 4 imports its libraries itself: its environment differs in MKL_NUM_THREADS\n" * is_refused)


@pytest.mark.whole  # a process of its own imports PyTorch
def test_no_run_is_forked_once_an_import_has_initialised_cuda(folder: Path) -> None:
    (folder / "asks.py").write_text(f"import torch, {IMPORTED}\ntorch.cuda.is_available()\n")
    for env in _listening(folder, "asks"):
        assert _start(env, folder, "0").communicate()[0] == "['0'] 0 True False __main__\n"


def test_a_run_reads_prefects_settings_from_its_own_environment(folder: Path) -> None:
    """And what starts it was not imported before: Python would warn, and have its classes twice."""
    (folder / "settings.py").write_text(
        "import logging, sys; from prefect.settings import get_current_settings as settings; "
        "print(settings().api.url, settings().home, 'prefect.flow_engine' in sys.modules); "
        "print(logging.getLogger('prefect').level, [type(handler).__name__ for handler in logging.getLogger('extra').handlers])"
    )
    preloaded = [module for module in fork_server.PRELOADED if module.startswith("prefect")]
    for env in _listening(folder, *preloaded, PREFECT_LOGGING_EXTRA_LOGGERS="extra"):
        for extra, level, handlers in (("extra", 10, ["APILogHandler"]), ("other", 30, [])):
            own = {
                "PREFECT_API_URL": "http://127.0.0.1:1/api",
                "PREFECT_HOME": str(folder),
                "PREFECT_LOGGING_LEVEL": logging.getLevelName(level),
                "PREFECT_LOGGING_EXTRA_LOGGERS": extra,
            }
            run = _client({**env, **own}, folder, "settings")
            assert run.communicate()[0] == f"http://127.0.0.1:1/api {folder} False\n{level} {handlers}\n"


@pytest.mark.whole  # a process of its own imports PyTorch
def test_a_run_computes_with_the_threads_of_its_own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tells.py").write_text(
        "import torch; from threadpoolctl import threadpool_info as info; "
        "print(torch.get_num_threads(), {library['num_threads'] for library in info()})"
    )
    script = """
import os, sys, torch, numpy
from deployments import fork_server
for asked in sys.argv[2:]:
    if (pid := os.fork()) == 0:
        fork_server._run(fork_server.ForkRequest(("tells",), {**os.environ, "OMP_NUM_THREADS": asked}, sys.argv[1]))
        break
    os.waitpid(pid, 0)
"""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    threads_by_asked = {"3": 3, "3,2": 3, "many": len(os.sched_getaffinity(0))}
    argv = [sys.executable, "-c", script, str(tmp_path), *threads_by_asked]
    completed = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert completed.stdout == "".join(f"{n} {{{n}}}\n" for n in threads_by_asked.values())


def test_signals_reach_the_run(listening: dict[str, str], folder: Path) -> None:
    with _start(listening, folder, "wait") as run:
        _pids(run)
        run.terminate()
        assert run.wait() == 7


def test_a_signal_that_comes_before_the_run_reaches_it(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, chdir(folder):
        server.bind("fork-server.sock")
        server.listen()
        env = {**os.environ, "PYTHONPATH": str(CHECKOUT), fork_server.SOCKET_VARIABLE: str(folder / "fork-server.sock")}
        with _start(env, folder, "0") as run:
            connection, _ = server.accept()
            run.terminate()
            connection.sendall(b"y")
            while connection.recv(4096)[-1] != signal.SIGTERM:
                pass
            connection.sendall((7 << 8).to_bytes(fork_server._LENGTH_BYTES))
            assert run.wait() == 7
            connection.close()


def test_a_run_ends_when_whoever_asked_for_it_is_killed(listening: dict[str, str], folder: Path) -> None:
    with _start(listening, folder, "wait") as run:
        pid, _ = _pids(run)
        run.kill()
    _await_end(pid)


@pytest.mark.parametrize("which", [0, 1])
def test_a_run_that_was_killed_or_orphaned_is_reported_as_killed(listening: dict[str, str], folder: Path, which: int) -> None:
    with _start(listening, folder, "wait") as run:
        pids = _pids(run)
        os.kill(pids[which], signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    _await_end(pids[0])


def test_the_socket_is_accessible_to_its_owner_only(listening: dict[str, str]) -> None:
    assert Path(listening[fork_server.SOCKET_VARIABLE]).stat().st_mode & 0o077 == 0
