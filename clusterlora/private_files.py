"""Files and folders that only their owner can read. Folders that other users can write to are refused."""

import logging
import os
import stat
from pathlib import Path
from typing import BinaryIO

from clusterlora.durable import make_folder as make_durably
from clusterlora.durable import write_durably
from clusterlora.errors import BadSettings, printable

log = logging.getLogger(__name__)

UMASK = 0o077
"""Umask of a process whose files no other user can read."""


_OWN = ("clusterlora.db", ".adapters", ".outbox", "stack.json", "passwords.json")
"""What a folder of results or of servers holds, one of these at least."""
_NOT_OTHERS = ("lost+found", "backups", "departed")
"""What a new disk has, and what a backup and people who leave write into the servers' folder, which may be before the servers do."""


def make_home(path: Path) -> Path:
    """Create a folder that somebody named, or close it to other users, as `make_folder` does.

    Raises:
        BadSettings: as `make_folder`, or it is open to other users and holds what is not of this program, which they may need.
    """
    if path.is_dir() and (status := path.stat()).st_uid == os.geteuid():
        mode, other = stat.S_IMODE(status.st_mode), _holds_others(path)
        if mode & (stat.S_IRWXG | stat.S_IRWXO) and not mode & (stat.S_IWGRP | stat.S_IWOTH) and other:
            raise BadSettings(
                f"{path} is open to other users (mode {mode:o}) and holds other things, such as {printable(other)}, so it is not "
                f"closed; give results a folder of their own, or close it: chmod 700 {path}"
            )
    return make_folder(path)


def _holds_others(path: Path) -> str | None:
    """Return the first thing in a folder that is not of this program; None where there is none, or where the folder is this program's."""
    names = {entry.name for entry in path.iterdir()}
    others = sorted(name for name in names if not name.startswith(".") and name not in _NOT_OTHERS)
    return others[0] if others and not names & set(_OWN) else None


def make_inner_folder(path: Path) -> None:
    """Create a folder inside a private one, or close it: earlier versions left it to the umask."""
    make_durably(path, mode=0o700)
    if stat.S_IMODE(path.stat().st_mode) != 0o700:
        path.chmod(0o700)


def make_folder(path: Path) -> Path:
    """Create the folder if it is missing, close it to other users, which is said where it was open, and return it.

    Raises:
        BadSettings: another user owns it or may write to it, so its files may be theirs; or it is a file, or a link that leads nowhere.
    """
    try:
        make_durably(path, mode=0o700)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadSettings(f"{path} cannot be a folder, as it, or a part of its path, is a file or a broken link; move that away") from error
    status = path.stat()
    if status.st_uid != os.geteuid():
        variables = "CLUSTERLORA_STACK_HOME for servers, CLUSTERLORA_HOME for results"
        raise BadSettings(f"{path} belongs to user {status.st_uid}, not to you; choose a folder of your own ({variables})")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadSettings(f"other users may write to {path} (mode {stat.S_IMODE(status.st_mode):o}); deny it: chmod go-w {path}")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        path.chmod(0o700)
        log.info("%s is closed to other users (its mode was %o): it holds what people said", path, stat.S_IMODE(status.st_mode))
    return path


def write_private(file: Path, text: str) -> None:
    """Write a file atomically and durably, readable by its owner only."""
    write_durably(file, text.encode(), mode=0o600)


def open_append(file: Path) -> BinaryIO:
    """Open a file for appending and return it; its permissions are set so that only its owner can read it."""
    opened = open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "ab")  # noqa: PTH123, SIM115
    os.fchmod(opened.fileno(), 0o600)
    return opened
