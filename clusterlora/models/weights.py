"""Weight files on disk: those of a model folder, their hashes, and the cache of prepared models."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path

from clusterlora.durable import make_folder, put_folder_in_place
from clusterlora.errors import ModelUnavailable

_WHOLE = "model.safetensors"
"""The weights of a model that is not cut into several files."""
_INDEX = f"{_WHOLE}.index.json"
"""Which of several files each weight is in."""
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})


def cache_folder() -> Path:
    """Return the folder of downloaded and converted models: $CLUSTERLORA_CACHE, else ~/.cache/clusterlora."""
    return Path(os.environ.get("CLUSTERLORA_CACHE") or Path.home() / ".cache" / "clusterlora")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files of a model folder in name order: its safetensors, else its single GGUF file.

    Raises:
        ModelUnavailable: there are none, only pickled ones, or several GGUF files.
    """
    unreadable = next(
        (file for suffix in ("safetensors", "gguf") for file in sorted(folder.glob(f"*.{suffix}")) if not file.is_file()), None
    )
    if unreadable is not None:
        raise ModelUnavailable(f"weight file {unreadable} is {kind_of_file(unreadable)}; point to a complete save_pretrained() folder")
    safetensors = tuple(sorted(folder.glob("*.safetensors")))
    if safetensors:
        if not (folder / "config.json").is_file():
            raise ModelUnavailable(f"model folder {folder} has no config.json; point to a complete save_pretrained() folder")
        _refuse_other_index(folder, {file.name for file in safetensors})
        return safetensors
    gguf = tuple(sorted(folder.glob("*.gguf")))
    if len(gguf) > 1:
        raise ModelUnavailable(f"model folder {folder} holds {len(gguf)} GGUF files; move the one to use into a folder of its own")
    if gguf:
        return gguf
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise ModelUnavailable(
            f"model folder {folder} holds only pickled weights ({pickled[0]}), which are never loaded; "
            "save it again with save_pretrained(safe_serialization=True)"
        )
    raise ModelUnavailable(f"model folder {folder} holds no *.safetensors and no *.gguf; point to a complete save_pretrained() folder")


def kind_of_file(path: Path) -> str:
    """Return what a path is that is no file, in words."""
    if path.is_dir():
        return "a folder"
    return "a link to nothing" if path.is_symlink() and not os.path.exists(path) else "no regular file"  # noqa: PTH110  (of link loops, too)


def loaded_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a model folder that transformers loads: what its index names, else model.safetensors, if any."""
    index = folder / _INDEX
    if not index.is_file():
        return (folder / _WHOLE,) if (folder / _WHOLE).is_file() else ()
    return tuple(folder / name for name in sorted(_named(index)))


def _named(index: Path) -> frozenset[str]:
    """Return the files that an index of weights names. Raises ModelUnavailable where it is none."""
    try:
        return frozenset[str](json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelUnavailable(f"{index} is no index of weights ({error!r}); get it again from where the model comes from") from error


def _refuse_other_index(folder: Path, present: Collection[str]) -> None:
    """Check that a folder has one set of weights: programs differ in whether they go by the index or by model.safetensors.

    Files beside those of the index are left alone: Mistral's folders hold the same weights in their own format.

    Raises:
        ModelUnavailable: there is neither, the index names a file that is not there, or there is a model.safetensors that it does not name.
    """
    index = folder / _INDEX
    if not index.is_file():
        if _WHOLE not in present:
            raise ModelUnavailable(
                f"model folder {folder} holds {min(present)}, and neither {_WHOLE} nor {index.name}, which says where each weight is; get "
                "one of them from where the model comes from"
            )
        return
    named = _named(index)
    if missing := sorted(map(str, named - set(present))):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelUnavailable(f"{index} names {missing[0]}{more}, which the folder lacks; get it, or remove an index that is out of date")
    if _WHOLE in present and _WHOLE not in named:
        raise ModelUnavailable(f"{folder} holds {_WHOLE} and an index of other files ({index.name}); keep one of them")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex; cached per process until the file is replaced or written."""
    stat = path.stat()
    # ctime, unlike mtime, cannot be set by `cp --preserve` or `touch`.
    return _sha256(path.resolve(), (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


@lru_cache(maxsize=8192)
def _sha256(path: Path, stat: tuple[int, ...]) -> str:  # noqa: ARG001  (part of the cache's key)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combined_sha256(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of a single file, as published; of several files, the SHA-256 of their hashes."""
    hashes = [file_sha256(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder `target`, which `build` fills if it does not exist.

    It is built under a temporary name and then renamed, so a visible folder is complete; of two processes that build it at the same
    time, the first wins.
    """
    if target.is_dir():
        return target
    make_folder(target.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        build(scratch)
        try:
            put_folder_in_place(scratch, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target
