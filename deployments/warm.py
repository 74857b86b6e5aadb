"""Runs that start at once: forks of a process that has imported what all of them import.

    python -m deployments.warm MODULE ARGUMENTS   runs `python -m MODULE ARGUMENTS`, as a fork where CLUSTERLORA_WARM names a socket
    python -m deployments.warm                    listens on that socket

PyTorch, transformers, sentence-transformers and MLflow take a processor core ten to forty seconds to import, in every run of a study.
`clusterlora up` starts the listening process once. What a worker starts then stays in place of the run: it hands over environment,
folder and output, passes signals on, and ends as the run does; when it is killed, so is the run. Nothing of clusterlora and Prefect is
imported beforehand: a run reads them, and its settings, as they are when it starts.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SOCKET = "CLUSTERLORA_WARM"
IMPORTED = (
    "torch",
    "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
    "sentence_transformers",
    "mlflow",
    "sqlalchemy.orm",
    "pandas",
)
_OF_EACH_RUN = ("PREFECT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""Beginnings of the variables that nothing imported here has read for good; in all others a run must agree."""
_PATIENCE_SECONDS = 120.0
"""How long a run waits for a listening process that is still importing: to import everything beside it would take as long."""
_BYTES_OF_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Run:
    """What is to be run, and how: module and arguments, environment, folder."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: str


def main(argv: Sequence[str]) -> None:
    """Listen, or run what `argv` says."""
    if not argv:
        _become(listen(Path(os.environ[SOCKET])))
    else:
        status = start(Run(tuple(argv), dict(os.environ), str(Path.cwd())))
        if status is None:
            os.execv(sys.executable, [sys.executable, "-m", *argv])
        _end_like(status)


def start(run: Run) -> int | None:
    """Have a run forked, see it through, and return its wait status; None when nobody can fork it and nothing was started."""
    path = run.env.get(SOCKET)
    if not path:
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.settimeout(_PATIENCE_SECONDS)
            # An address may be 107 bytes long, so it is taken from its folder.
            with chdir(Path(path).parent):
                connection.connect(Path(path).name)
            message = json.dumps(asdict(run)).encode()
            socket.send_fds(connection, [len(message).to_bytes(_BYTES_OF_LENGTH)], [0, 1, 2])
            connection.sendall(message)
            if connection.recv(1) != b"y":
                return None
        except OSError:
            return None
        connection.settimeout(None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda received, _: connection.sendall(bytes([received])))
        status = _read(connection, _BYTES_OF_LENGTH)
    # Without a word the one who watches over the run is gone, and the run with it.
    return int.from_bytes(status) if status else signal.SIGKILL


def listen(path: Path, imported: Sequence[str] = IMPORTED) -> Run:
    """Fork for everybody who asks; return in the fork, with what it is to run. The listening process itself never returns."""
    here = _shared(os.environ)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    others = os.umask(0o177)
    with chdir(path.parent):
        listener.bind(path.name)
    os.umask(others)
    listener.listen(64)
    for module in imported:
        importlib.import_module(module)
    # What is there now stays shared: the collector would touch every page of it.
    gc.freeze()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            if run := _keep(connection, here):
                return run
            os._exit(0)
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _keep(connection: socket.socket, here: Mapping[str, str]) -> Run | None:
    """Fork once more: return in the fork what it is to run; here, watch over it until it or whoever asked for it has ended."""
    length, descriptors, _, _ = socket.recv_fds(connection, _BYTES_OF_LENGTH, 3)
    known = json.loads(_read(connection, int.from_bytes(length)))
    run = Run(tuple(known["argv"]), known["env"], known["folder"])
    if _shared(run.env) != here or _is_cut_off():
        connection.sendall(b"n")
        return None
    # First: whoever waits no longer runs alone by now, and nothing may be forked beside that.
    connection.sendall(b"y")
    watcher = os.getpid()
    if (pid := os.fork()) == 0:
        connection.close()
        _die_with(watcher)
        for here_too, descriptor in enumerate(descriptors):
            os.dup2(descriptor, here_too)
            os.close(descriptor)
        return run
    for descriptor in descriptors:
        os.close(descriptor)
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if select.select([connection], [], [], 0.1)[0]:
            received = connection.recv(1)
            os.kill(pid, received[0] if received else signal.SIGKILL)
            if not received:
                return None
    with suppress(OSError):
        connection.sendall(ended[1].to_bytes(_BYTES_OF_LENGTH))
    return None


def _become(run: Run) -> None:
    """Run it in this process, as `python -m` would."""
    os.environ.clear()
    os.environ.update(run.env)
    time.tzset()
    if "torch" in sys.modules:
        # Lists say how many there are at each level of nesting; nothing here nests.
        asked = run.env.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        _take_threads(int(asked) if asked.isdecimal() and int(asked) else len(os.sched_getaffinity(0)))
    os.chdir(run.folder)
    sys.path[0] = run.folder
    sys.argv = list(run.argv)
    runpy.run_module(run.argv[0], run_name="__main__", alter_sys=True)


def _is_cut_off() -> bool:
    """Return whether something that was imported has spoken to a GPU, which no fork can from then on."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and torch.cuda._is_in_bad_fork()


def _take_threads(n: int) -> None:
    """Give products so many threads: the libraries that compute them have asked for theirs when they were imported."""
    import torch
    from threadpoolctl import threadpool_limits

    threadpool_limits(n)
    torch.set_num_threads(n)


def _end_like(status: int) -> None:
    """End this process as another has ended, by the same signal or with the same code."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(os.waitstatus_to_exitcode(status))


def _shared(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(_OF_EACH_RUN)}


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent dies (Linux)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _read(connection: socket.socket, n_bytes: int) -> bytes:
    """Return exactly so many bytes, or none when the other side is gone before."""
    found = b""
    while len(found) < n_bytes:
        try:
            part = connection.recv(n_bytes - len(found))
        except ConnectionError:
            return b""
        if not part:
            return b""
        found += part
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
