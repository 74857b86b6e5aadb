"""Fork server: starts runs as forks of a process that has already imported their libraries.

    python -m deployments.fork_server                    listens on the socket CLUSTERLORA_FORK_SERVER
    python -m deployments.fork_server MODULE ARGUMENTS   runs `python -m MODULE ARGUMENTS`, as a fork if that variable is set

Importing PyTorch, transformers, sentence-transformers, MLflow and Prefect takes ten to forty seconds of CPU time in every run of a study.
`clusterlora up` starts the server once. The client, which a worker starts, stands in for the run: it passes environment, folder and output
to the server, forwards signals, and exits with the run's status; if it is killed, so is the run. The server imports nothing of clusterlora,
so that a run reads its current code, and a run reads Prefect's settings anew.
"""

import ctypes
import gc
import importlib
import importlib.util
import json
import logging
import os
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SOCKET_VARIABLE = "CLUSTERLORA_FORK_SERVER"
PRELOADED = (
    "torch",
    "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
    "sentence_transformers",
    "mlflow",
    "sqlalchemy.orm",
    "pandas",
    "matplotlib.figure",
    "rouge_score.rouge_scorer",
    "prefect.main",
    "prefect.flows",
    "prefect.task_engine",
    "prefect.events.worker",
    "prefect.events.clients",
    "prefect.logging.handlers",
)
_PER_RUN_PREFIXES = ("PREFECT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""Prefixes of environment variables that no preloaded library reads at import. All others must be equal in the server and a run."""
_CONNECT_SECONDS = 120.0
"""How long a client waits for a server that is still importing; importing everything itself would take as long."""
_LENGTH_BYTES = 8
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What a client that stands in for a run passes on to it."""


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """What to run: module and arguments, environment variables, working directory."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: str


def main(argv: Sequence[str]) -> None:
    """Listen, or run the module that `argv` names."""
    if not argv:
        _run(listen(Path(os.environ[SOCKET_VARIABLE]), can_be_preloaded()))
    else:
        status = run_forked(ForkRequest(tuple(argv), dict(os.environ), str(Path.cwd())))
        if status is None:
            if os.environ.get(SOCKET_VARIABLE):
                sys.stderr.write("no fork server takes this run (logs/fork-server.log): it imports its libraries itself\n")
                sys.stderr.flush()
            os.execv(sys.executable, [sys.executable, "-m", *argv])
        _exit_with(status)


def run_forked(request: ForkRequest) -> int | None:
    """Run the request in a fork of the server and return its wait status; None if no server accepts it and nothing was started."""
    path = request.env.get(SOCKET_VARIABLE)
    if not path:
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        # A signal that comes before the run is there waits for it.
        with _held(_FORWARDED):
            if not _accepted(connection, Path(path), request):
                return None
            for number in _FORWARDED:
                signal.signal(number, lambda received, _: connection.sendall(bytes([received])))
        status = _read(connection, _LENGTH_BYTES)
    # No status: the process that watches the run is gone, and the run with it.
    return int.from_bytes(status) if status else signal.SIGKILL


def can_be_preloaded() -> list[str]:
    """Return what is imported before any fork.

    Where bitsandbytes is installed, PEFT imports it, and that initialises CUDA, which no fork could use then. sentence-transformers imports
    PEFT, so every run does it itself there.
    """
    return [module for module in PRELOADED if module != "sentence_transformers" or importlib.util.find_spec("bitsandbytes") is None]


def _accepted(connection: socket.socket, path: Path, request: ForkRequest) -> bool:
    """Return whether the server at this address runs the request."""
    try:
        connection.settimeout(_CONNECT_SECONDS)
        # The address of a socket is at most 107 bytes long, so it is given relative to its folder.
        with chdir(path.parent):
            connection.connect(path.name)
        message = json.dumps(asdict(request)).encode()
        socket.send_fds(connection, [len(message).to_bytes(_LENGTH_BYTES)], [0, 1, 2])
        connection.sendall(message)
        is_accepted = connection.recv(1) == b"y"
    except OSError:
        return False
    connection.settimeout(None)
    return is_accepted


@contextmanager
def _held(numbers: Collection[signal.Signals]) -> Generator[None]:
    """Deliver these signals after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listen(path: Path, preloaded: Sequence[str]) -> ForkRequest:
    """Fork once per request; return the request in the fork, which finds these modules imported. The listener never returns."""
    environment = _shared(os.environ)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    previous_umask = os.umask(0o177)
    with chdir(path.parent):
        listener.bind(path.name)
    os.umask(previous_umask)
    listener.listen(64)
    # Imports leave no garbage to speak of; to look for it takes a fifth of their time.
    gc.disable()
    for module in preloaded:
        importlib.import_module(module)
    # Keep these pages shared with the forks: the garbage collector would write to every one of them.
    gc.freeze()
    gc.enable()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            if request := _fork_watched(connection, environment):
                return request
            os._exit(0)
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _fork_watched(connection: socket.socket, environment: Mapping[str, str]) -> ForkRequest | None:
    """Fork again. Return the request in the child; in the parent, watch the child until it or the client has ended, and return None."""
    length, descriptors, _, _ = socket.recv_fds(connection, _LENGTH_BYTES, 3)
    message = json.loads(_read(connection, int.from_bytes(length)))
    request = ForkRequest(tuple(message["argv"]), message["env"], message["folder"])
    if reason := _why_not(_shared(request.env), environment):
        # To the log of the server: such a run takes seconds and half a gigabyte more.
        sys.stderr.write(f"{' '.join(request.argv)} imports its libraries itself: {reason}\n")
        sys.stderr.flush()
        connection.sendall(b"n")
        return None
    # Before the fork: if the client has timed out and runs the module itself, this raises, and nothing is forked beside it.
    connection.sendall(b"y")
    watcher = os.getpid()
    if (pid := os.fork()) == 0:
        connection.close()
        _die_with_parent(watcher)
        for standard_stream, descriptor in enumerate(descriptors):
            os.dup2(descriptor, standard_stream)
            os.close(descriptor)
        return request
    for descriptor in descriptors:
        os.close(descriptor)
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if select.select([connection], [], [], 0.1)[0]:
            received = connection.recv(1)
            os.kill(pid, received[0] if received else signal.SIGKILL)
            if not received:
                return None
    with suppress(OSError):
        connection.sendall(ended[1].to_bytes(_LENGTH_BYTES))
    return None


def _run(request: ForkRequest) -> None:
    """Run the request in this process, as `python -m` would."""
    os.environ.clear()
    os.environ.update(request.env)
    time.tzset()
    os.chdir(request.folder)
    sys.path[0] = request.folder
    if "torch" in sys.modules:
        from clusterlora.models.device import usable_cores

        # The variable may list a number per nesting level; nothing here nests.
        n_threads = request.env.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        _set_threads(int(n_threads) if n_threads.isdecimal() and int(n_threads) else usable_cores())
    if "prefect" in sys.modules:
        _set_prefect_up_again()
    sys.argv = list(request.argv)
    runpy.run_module(request.argv[0], run_name="__main__", alter_sys=True)


def _set_prefect_up_again() -> None:
    """Let Prefect read its settings, and with them its logging, from this run's environment: it did so from the server's."""
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging
    from prefect.settings import PREFECT_LOGGING_EXTRA_LOGGERS

    for name in PREFECT_LOGGING_EXTRA_LOGGERS.value():
        logging.getLogger(name).handlers.clear()
    refresh_global_settings_context()
    setup_logging(incremental=False)


def _why_not(wanted: Mapping[str, str], own: Mapping[str, str]) -> str:
    """Return why a run that wants this environment cannot be a fork of this process; empty where it can."""
    if differing := sorted(name for name in wanted.keys() | own.keys() if wanted.get(name) != own.get(name)):
        return f"its environment differs in {', '.join(differing)}"
    return "an import has initialised CUDA" if _has_initialised_cuda() else ""


def _has_initialised_cuda() -> bool:
    """Return whether a preloaded library has initialised CUDA, which makes CUDA unusable in every fork."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and torch.cuda._is_in_bad_fork()


def _set_threads(n: int) -> None:
    """Set the number of threads of BLAS, OpenMP and PyTorch, which read OMP_NUM_THREADS when they were imported."""
    import torch
    from threadpoolctl import threadpool_limits

    threadpool_limits(n)
    torch.set_num_threads(n)


def _exit_with(status: int) -> None:
    """End this process with a wait status: by the same signal or with the same exit code."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(os.waitstatus_to_exitcode(status))


def _shared(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(_PER_RUN_PREFIXES)}


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _read(connection: socket.socket, n_bytes: int) -> bytes:
    """Return exactly `n_bytes` bytes; none if the peer disconnects before."""
    received = b""
    while len(received) < n_bytes:
        try:
            part = connection.recv(n_bytes - len(received))
        except ConnectionError:
            return b""
        if not part:
            return b""
        received += part
    return received


if __name__ == "__main__":
    main(sys.argv[1:])
