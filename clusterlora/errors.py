"""Errors that a user can meet. Each names the thing, its value and the fix, in one line.

ClusterLoraError
|- BadData          (ValueError)    the input data cannot be used
|  '- NothingNew                     what is offered holds nothing that is not there already
|- BadSettings      (ValueError)    a setting or a combination of settings is impossible
|- UnknownName      (LookupError)   a method, metric, study, persona ... that does not exist
|- ModelUnavailable (RuntimeError)  base or embedding model cannot be loaded here
|- OutOfMemory      (MemoryError)   an allocation failed; retry with a smaller micro-batch
|- TrainingDiverged (ArithmeticError)  an adapter's loss is not finite
'- ServiceDown      (ConnectionError)  Prefect, MLflow or the database does not answer
"""

import errno
import re


class ClusterLoraError(Exception):
    """Base of all errors whose message is meant for the user."""


class BadData(ClusterLoraError, ValueError):
    """The input data cannot be used."""


class NothingNew(BadData):
    """New dialogues hold nothing that is not there already."""


class BadSettings(ClusterLoraError, ValueError):
    """A setting, or a combination of settings, is impossible."""


class UnknownName(ClusterLoraError, LookupError):
    """A name does not exist: of a method, metric, study, persona ..."""


class ModelUnavailable(ClusterLoraError, RuntimeError):
    """A base or embedding model cannot be loaded on this machine."""


class OutOfMemory(ClusterLoraError, MemoryError):
    """An allocation failed at a known micro-batch."""

    def __init__(self, message: str, *, micro_batch: int) -> None:
        super().__init__(message)
        self.micro_batch = micro_batch


class TrainingDiverged(ClusterLoraError, ArithmeticError):
    """The loss of adapters is not finite. `adapters` are their names; all others have been trained."""

    def __init__(self, message: str, *, adapters: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.adapters = adapters


class ServiceDown(ClusterLoraError, ConnectionError):
    """Prefect, MLflow or the database does not answer."""


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def printable(text: str) -> str:
    """Return an untrusted name as it can be printed in one line, with control characters escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


_FIX_BY_ERRNO = {
    errno.EACCES: "let this user read it, or write there",
    errno.EPERM: "let this user read it, or write there",
    errno.ENAMETOOLONG: "give a shorter one",
    errno.EEXIST: "it is there and is no folder; give another, or move it away",
    errno.ENOENT: "correct the path, or create what is missing of it",
    errno.ENOTDIR: "a part of it is a file; give the path of a file in a folder",
    errno.EISDIR: "give a file",
    errno.ELOOP: "its links lead to each other; give the file itself",
    errno.EROFS: "give a folder that can be written to",
}


def path_problem(error: OSError) -> str | None:
    """Return in a line what is wrong with the path that somebody gave, and the fix; None if the path is not what is wrong."""
    fix = _FIX_BY_ERRNO.get(error.errno or 0)
    if fix is None or error.filename is None:
        return None
    return f"{printable(str(error.filename))}: {(error.strerror or '').lower()}; {fix}"


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Unicode's category Cc without tab and line feed: what begins a terminal's commands."""


def harmless(text: str) -> str:
    """Return an untrusted text as a terminal can show it: line breaks and tabs stay, other control characters are escaped."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
