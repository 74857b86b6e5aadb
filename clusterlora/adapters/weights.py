"""The files of an adapter's PEFT folder: which they are, whether they are whole, and their digest."""

import json
from pathlib import Path

from clusterlora.adapters.shards import open_shard, shard_in
from clusterlora.errors import BadData
from clusterlora.models.weights import file_sha256
from clusterlora.ports.adapter_store import CONFIG, WEIGHTS, AdapterFiles, combined_sha256


def adapter_files(folder: Path) -> AdapterFiles | None:
    """Return the content of a PEFT folder; None where it holds more than configuration and weights. Raises BadData as `weight_files`."""
    if [file.name for file in weight_files(folder)] != [CONFIG, WEIGHTS]:
        return None
    return AdapterFiles((folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes())


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors and JSON files of a PEFT folder. The model card that PEFT writes beside them is left out.

    Raises:
        BadData: a file of another kind (pickled weights above all, under whatever name), a subfolder, a link, or a missing file.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    if missing := [name for name in (CONFIG, WEIGHTS) if folder / name not in entries]:
        raise BadData(f"{folder} is not a PEFT adapter: {' and '.join(missing)} missing; save it with save_pretrained")
    kept = [e for e in entries if e.name != "README.md"]
    if refused := [e.name for e in kept if e.suffix not in {".safetensors", ".json"} or e.is_symlink() or not e.is_file()]:
        raise BadData(f"{folder} holds {', '.join(refused)}; only .safetensors and .json files are kept, pickled weights are never loaded")
    if broken := [e.name for e in kept if not (_is_safetensors(e) if e.suffix == ".safetensors" else _is_json(e))]:
        raise BadData(f"{folder} holds {', '.join(broken)}, cut or not what its name says; save it with save_pretrained")
    return tuple(kept)


def _is_safetensors(file: Path) -> bool:
    """Return whether a file begins with a JSON object that lists tensors and is long enough for them: a pickle, or half a file, is not."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        n_header = int.from_bytes(opened.read(8), "little")
        if n_header > size - 8:
            return False
        header = opened.read(n_header)
    try:
        ends = [int(entry["data_offsets"][1]) for name, entry in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
        return False
    return 8 + n_header + max(ends, default=0) <= size


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of what `sha256sum` says of an adapter's files in name order: its weights and how they are to be applied."""
    return combined_sha256({file.name: file_sha256(file) for file in weight_files(folder)})


def sha256_in(folder: Path, key: str) -> str:
    """Return the digest of an adapter in a folder that was downloaded: a PEFT folder, or one with a shard that has it.

    Raises:
        BadData: it is neither, or damaged.
    """
    if not folder.is_dir() or (file := shard_in(folder)) is None:
        return weights_sha256(folder)
    shard = open_shard(file)
    if key not in shard.keys:
        raise BadData(f"shard {file} has no adapter {key}")
    return shard.read(key).sha256


def refuse_other_weights(key: str, expected_sha256: str | None, sha256: str) -> None:
    """Check that a digest is that of the weights which were recorded under a key; without a recorded one any is taken.

    Raises:
        BadData: it is another.
    """
    if expected_sha256 is not None and expected_sha256 != sha256:
        raise BadData(
            f"adapter {key} has SHA-256 {sha256[:16]}..., recorded is {expected_sha256[:16]}...; "
            "run `clusterlora study verify --repair` where it was trained"
        )
