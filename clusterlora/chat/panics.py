"""Panics of libraries written in Rust, as tokenizers is: an exception that is no Exception, after a report on the process's stderr."""

import os
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from clusterlora.errors import ModelUnavailable, printable

_ONE_AT_A_TIME = threading.RLock()
"""There is one stderr in a process."""


def is_panic(error: BaseException) -> bool:
    """Return whether an exception is a panic: every library has a class of its own, of one name."""
    return type(error).__name__ == "PanicException"


@contextmanager
def panics_refused(what: str) -> Generator[None]:
    """Raise a panic in the block as ModelUnavailable, in one line that begins with `what`."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        why = printable(next(iter(str(error).splitlines()), "no reason given"))
        raise ModelUnavailable(f"{what} cannot be used: {why}; a value in its tokenizer.json is none that tokenizers can use") from error


@contextmanager
def panics_unprinted() -> Generator[None]:
    """Keep the report of a panic off stderr, with its backtrace; all else that is written there in the block appears after it."""
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as held:
        try:
            stderr = os.dup(2)
        except OSError:  # a process without one
            yield
            return
        sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            if not panicked:
                held.seek(0)
                with suppress(OSError):
                    os.write(2, held.read())
            os.close(stderr)
