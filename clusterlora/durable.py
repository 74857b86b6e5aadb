"""Files and folders that a reader sees whole or not at all, and that a power cut leaves as they were or as they became.

Until a file is synced, a power cut may leave it empty or cut; until its folder is, it may leave the old name. So what is renamed into place
is synced before, and the folder it is in is synced after.
"""

import errno
import os
from pathlib import Path

_CANNOT_SYNC_FOLDERS = (errno.EINVAL, errno.ENOTSUP)
"""What some network file systems say, which keep folders in order by themselves."""


def write_durably(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Put content at the path in one step, creating its folder; a reader sees the old file or the whole of the other.

    Args:
        mode: who may read and write the file, less what the process's umask takes away.
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
    """Rename a finished file to a path in its folder, whose file it replaces."""
    sync(written)
    written.replace(path)
    sync(path.parent)


def put_folder_in_place(written: Path, path: Path) -> None:
    """Rename a folder of finished files. Raises OSError when there is a folder with something in it already."""
    for file in written.rglob("*"):
        sync(file)
    sync(written)
    written.rename(path)
    sync(path.parent)


def make_folder(path: Path, *, mode: int = 0o777) -> None:
    """Make a folder, open to whom its mode says, and those above it, unless they exist.

    Every folder that is to survive is made by this: of one that exists nobody can tell whether its name is on the disk.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for folder in reversed(made):
        sync(folder.parent)


def sync(path: Path) -> None:
    """Return once a file's content or a folder's names are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if not (path.is_dir() and error.errno in _CANNOT_SYNC_FOLDERS):
            raise
    finally:
        os.close(opened)
