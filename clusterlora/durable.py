"""Atomic and durable writes of files and folders: a reader, or a power cut, leaves the old version or the whole of the new one.

A power cut may truncate a file that was not synced, and undo a rename whose folder was not synced. So a file is synced before it is renamed
into place, and its folder after.
"""

import errno
import os
from pathlib import Path

_CANNOT_SYNC_FOLDERS = (errno.EINVAL, errno.ENOTSUP)
"""Errors of network file systems that cannot sync folders and do not need it."""


def write_durably(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write the content to the path atomically, creating its folder; a reader sees the old file or the whole new one.

    Args:
        mode: permissions of the file, before the process's umask.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:  # noqa: PTH123
            opened.write(content)
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def put_in_place(written: Path, path: Path) -> None:
    """Rename a finished file to a path in the same folder, replacing the file there."""
    sync(written)
    written.replace(path)
    sync(path.parent)


def put_folder_in_place(written: Path, path: Path) -> None:
    """Rename a folder of finished files. Raises OSError if the path is a folder that is not empty."""
    sync_all(written)
    written.rename(path)
    sync(path.parent)


def make_folder(path: Path, *, mode: int = 0o777) -> None:
    """Create a folder with the given permissions, and its parents, if they do not exist, and sync their names.

    Every folder that must survive a power cut is created here: for an existing folder it is unknown whether its name was synced.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for folder in reversed(made):
        sync(folder.parent)


def sync_all(folder: Path) -> None:
    """Sync a folder and everything in it to disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Sync a file's content or a folder's names to disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if not (path.is_dir() and error.errno in _CANNOT_SYNC_FOLDERS):
            raise
    finally:
        os.close(opened)
