"""Work of a command in a process that ends with it: a command that then waits for hours does not hold the memory that its checks took."""

import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_child(work: Callable[[], T], *, doing: str) -> T:
    """Return what `work` returns, from a fork of this process; raise what it raises.

    Where PyTorch is imported, the work is done here: its threads do not survive a fork, and nothing would be saved.

    Args:
        doing: what the work is, for the message of its end.

    Raises:
        MemoryError: the fork was killed, by the system where memory ran out.
        RuntimeError: another signal ended it, as where a library crashes.
        OSError: there is no memory for a fork.
    """
    if "torch" in sys.modules:
        return work()
    reading, writing = os.pipe()
    # Else both processes would write what is waiting.
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        # Whatever happens, nothing of what called this goes on in two processes.
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(_outcome(work))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            message = pipe.read()
    finally:
        _, status = os.waitpid(pid, 0)
    if not message:
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
            raise RuntimeError(f"the process that was {doing} ended by {signal.Signals(os.WTERMSIG(status)).name}")
        raise MemoryError(f"the process that was {doing} was killed")
    outcome, value = pickle.loads(message)
    if outcome == "raised":
        raise value
    return value


def _outcome(work: Callable[[], object]) -> bytes:
    """Return what the work returned or raised; something that cannot be sent, as its words."""
    try:
        outcome = ("returned", work())
    except BaseException as error:  # noqa: BLE001  (the parent raises it)
        outcome = ("raised", error)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        message = pickle.dumps(outcome)
        pickle.loads(message)
    except Exception:  # noqa: BLE001  (whatever cannot be pickled)
        message = pickle.dumps(("raised", RuntimeError(f"{type(outcome[1]).__name__}: {outcome[1]}")))
    return message
