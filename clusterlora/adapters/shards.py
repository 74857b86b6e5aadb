"""Many adapters of one form in a file: a shard, safetensors in which every tensor of a PEFT folder has one row more per adapter.

Adapters of one recipe have the same configuration and the same tensors, so what a shard says of their form it says once, and any program
that reads safetensors reads it. The header of the adapters' own files is kept in its metadata: a PEFT folder is given back byte for byte.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from clusterlora.errors import BadData
from clusterlora.ports.adapter_store import CONFIG, AdapterFiles

MOST_ADAPTERS = 128
"""Adapters of a shard: so many may be finished and not stored yet, and 10,000 are some eighty files."""
MOST_BYTES = 256 * 2**20
"""Bytes of a shard, which is rewritten when an adapter leaves it."""

_KEYS, _HEADER = "clusterlora.keys", "clusterlora.header"
_MOST_HEADER_BYTES = 100_000_000
"""What safetensors itself accepts."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Shard:
    """An opened shard: the keys of its adapters in the order of their rows, and where each tensor begins."""

    file: Path
    keys: tuple[str, ...]
    config: bytes
    header: bytes
    """The length and the header with which each adapter's own file begins."""
    rows: tuple[tuple[int, int], ...]
    """(offset in the file, bytes of a row) of each tensor, in the order in which an adapter's own file has them."""

    def read(self, key: str) -> AdapterFiles:
        """Return an adapter as it was.

        Raises:
            BadData: the file is shorter than it says.
            KeyError: it is not in this shard.
        """
        return next(self._read([self.keys.index(key)] if key in self.keys else _missing(key)))

    def read_all(self) -> dict[str, AdapterFiles]:
        """Return all adapters by key. Raises BadData as `read`."""
        return dict(zip(self.keys, self._read(range(len(self.keys))), strict=True))

    def _read(self, rows: Sequence[int]) -> Iterator[AdapterFiles]:
        with self.file.open("rb") as opened:
            for row in rows:
                parts = [os.pread(opened.fileno(), size, offset + row * size) for offset, size in self.rows]
                weights = b"".join((self.header, *parts))
                if len(weights) != len(self.header) + sum(size for _, size in self.rows):
                    raise BadData(f"shard {self.file} is cut short; its adapters are fetched or trained again")
                yield AdapterFiles(self.config, weights)


def is_key(key: object) -> bool:
    """Return whether this is a content key: a file's name, and never a path."""
    return isinstance(key, str) and _KEY.fullmatch(key) is not None


def _missing(key: str) -> Sequence[int]:
    raise KeyError(key)


def form_of(files: AdapterFiles) -> tuple[bytes, bytes]:
    """Return what adapters of one shard have in common: configuration, and names, types and shapes of the tensors."""
    return files.config, files.weights[: 8 + int.from_bytes(files.weights[:8], "little")]


def in_shards(files_by_key: Mapping[str, AdapterFiles]) -> Iterator[dict[str, AdapterFiles]]:
    """Yield adapters in the groups that a shard each holds: of one form, and neither too many nor too large."""
    groups: dict[tuple[bytes, bytes], dict[str, AdapterFiles]] = {}
    for key, files in files_by_key.items():
        group = groups.setdefault(form_of(files), {})
        group[key] = files
        if len(group) == MOST_ADAPTERS or (len(group) + 1) * len(files.weights) > MOST_BYTES:
            yield groups.pop(form_of(files))
    yield from groups.values()


def write_shard(file: Path, files_by_key: Mapping[str, AdapterFiles]) -> None:
    """Write adapters of one form as a shard."""
    (config, header), *others = {form_of(files) for files in files_by_key.values()}
    assert not others, "adapters of several forms cannot be rows of the same tensors"
    form = json.loads(header[8:])
    names = sorted((name for name in form if name != "__metadata__"), key=lambda name: form[name]["data_offsets"])
    n, offset, entries = len(files_by_key), 0, {}
    for name in names:
        begin, end = form[name]["data_offsets"]
        entries[name] = form[name] | {"shape": [n, *form[name]["shape"]], "data_offsets": [offset, offset := offset + n * (end - begin)]}
    metadata = {"format": "pt", _KEYS: json.dumps(list(files_by_key)), CONFIG: config.decode(), _HEADER: header[8:].decode()}
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            begin, end = (len(header) + at for at in form[name]["data_offsets"])
            opened.writelines(files.weights[begin:end] for files in files_by_key.values())


def open_shard(file: Path) -> Shard:
    """Return an opened shard, the same as long as the file is.

    Raises:
        BadData: it is no shard, or it is cut short.
        FileNotFoundError: it is not there.
    """
    stat = file.stat()
    try:
        return _opened(file, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise BadData(f"{file} is no shard of adapters, or is damaged ({problem})") from problem


@lru_cache(maxsize=1024)
def _opened(file: Path, stat: tuple[int, ...]) -> Shard:
    _, size, *_ = stat
    with file.open("rb") as opened:
        n_header = int.from_bytes(opened.read(8), "little")
        if n_header > min(size - 8, _MOST_HEADER_BYTES):
            raise ValueError("its header is cut short, or too long")
        entries = json.loads(opened.read(n_header))
    metadata = entries.pop("__metadata__")
    keys, own = tuple(json.loads(metadata[_KEYS])), metadata[_HEADER].encode()
    if refused := [key for key in keys if not is_key(key)]:
        raise ValueError(f"{refused[0]!r:.80} is no adapter's key")
    if not keys or len(set(keys)) < len(keys):
        raise ValueError("it has no adapter, or two under one key")
    form = {name: entry for name, entry in json.loads(own).items() if name != "__metadata__"}
    names = sorted(form, key=lambda name: form[name]["data_offsets"])
    rows = []
    for name in names:
        begin, end = entries[name]["data_offsets"]
        (first, last), shape = form[name]["data_offsets"], entries[name]["shape"]
        if not all(type(at) is int and at >= 0 for at in (begin, end, first, last)) or end < begin:
            raise ValueError(f"tensor {name} is nowhere")
        if end - begin != len(keys) * (last - first) or shape != [len(keys), *form[name]["shape"]]:
            raise ValueError(f"tensor {name} is not one row per adapter")
        rows.append((8 + n_header + begin, last - first))
    if names and 8 + n_header + max(entries[name]["data_offsets"][1] for name in names) > size:
        raise ValueError("its weights are cut short")
    header = len(own).to_bytes(8, "little") + own
    return Shard(file, keys, metadata[CONFIG].encode(), header, tuple(rows))


def shard_in(folder: Path) -> Path | None:
    """Return the shard that a folder holds where others hold a PEFT adapter; None where it holds none."""
    files = [file for file in folder.iterdir() if file.suffix == SUFFIX]
    return files[0] if len(files) == 1 and not (folder / CONFIG).exists() else None
