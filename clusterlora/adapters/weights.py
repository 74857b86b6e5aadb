"""The files of an adapter's PEFT folder: which they are, whether they are whole, and their digest."""

import hashlib
import json
from pathlib import Path

from clusterlora.errors import BadData
from clusterlora.models.weights import file_sha256

_REQUIRED = ("adapter_config.json", "adapter_model.safetensors")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors and JSON files of a PEFT folder. The model card that PEFT writes beside them is left out.

    Raises:
        BadData: a file of another kind (pickled weights above all, under whatever name), a subfolder, a link, or a missing file.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    if missing := [name for name in _REQUIRED if folder / name not in entries]:
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
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False
    return 8 + n_header + max(ends, default=0) <= size


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except ValueError:
        return False
    return True


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of what `sha256sum` says of an adapter's files in name order: its weights and how they are to be applied."""
    lines = [f"{file_sha256(file)}  {file.name}\n" for file in weight_files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def refuse_other_weights(key: str, expected_sha256: str | None, folder: Path) -> None:
    """Check that a folder holds the weights that were recorded under a key; without a recorded digest anything is taken.

    Raises:
        BadData: it holds others, or no adapter at all.
    """
    sha256 = weights_sha256(folder)
    if expected_sha256 not in (None, sha256):
        raise BadData(
            f"adapter {key} has SHA-256 {sha256[:16]}..., recorded is {expected_sha256[:16]}...; "
            "run `clusterlora study verify --repair` where it was trained"
        )
