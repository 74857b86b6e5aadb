"""Folders and files that only their owner can read, and folders that are refused because others can write to them."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from clusterlora.errors import BadSettings

UMASK = 0o077
"""With it a process leaves nothing that anybody else could read."""


def folder(path: Path) -> Path:
    """Return the folder, made when it is missing and closed to everybody but its owner.

    Raises:
        BadSettings: it is another user's, or others may write to it: what lies in it may be theirs.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_uid != os.geteuid():
        whose = "CLUSTERLORA_STACK_HOME for servers, CLUSTERLORA_HOME for results"
        raise BadSettings(f"{path} belongs to user {found.st_uid}, not to you; choose a folder of your own ({whose})")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadSettings(f"other users may write to {path} (mode {stat.S_IMODE(found.st_mode):o}); keep them out: chmod go-w {path}")
    path.chmod(0o700)
    return path


def write(file: Path, text: str) -> None:
    """Write a file that appears whole and that only its owner can read."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.part")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w", encoding="utf-8") as opened:  # noqa: PTH123
        opened.write(text)
    unfinished.replace(file)


def append(file: Path) -> BinaryIO:
    """Return a file that only its owner can read, opened to be appended to; one that others could read is closed to them."""
    opened = open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "ab")  # noqa: PTH123, SIM115
    os.fchmod(opened.fileno(), 0o600)
    return opened
