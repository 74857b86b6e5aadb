"""The revision of a base model: a hash of its weights and of every other file that changes its answers."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from clusterlora.errors import ModelUnavailable
from clusterlora.models.checks import read_settings
from clusterlora.models.weights import file_sha256, kind_of_file
from clusterlora.values import digest

_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.model.v*",
    "*.tiktoken",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_SETTINGS = frozenset({"config.json", "generation_config.json", "tokenizer_config.json"})
_PROVENANCE = frozenset({"transformers_version", "_name_or_path"})
"""Settings that only say which version wrote a file, and where."""

_PUBLISHED = {
    "cbf5e842aada2e8ec1e8903196bfa5c1c1147bd5d5f31412b6b07fa8939cf8cc": "7eee080c9a194161",  # homelm
    "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b": "9d96c873e55931da",  # smollm2-135m
}
"""The bases that come with this package, by the SHA-256 of their weights, and the digest of their other files. Their weights alone are
their revision: studies, adapters and registered models are recorded under it."""


def revision_of(folder: Path, weights: str) -> str:
    """Return `weights` (their SHA-256, or a hub's commit), a dash, and the digest of the other files.

    Raises:
        ModelUnavailable: a file of settings is not JSON, or one of the files is a folder, a link to nothing or a device.
    """
    others = digest([(str(file.relative_to(folder)), _content(file)) for file in _files(folder)])
    return weights if _PUBLISHED.get(weights) == others else f"{weights}-{others}"


def is_same_base(recorded: str, revision: str) -> bool:
    """Return whether a revision matches a recorded one, which may consist of the weights alone."""
    return revision == recorded or revision.startswith(f"{recorded}-")


def _files(folder: Path) -> Iterator[Path]:
    for pattern in _FILES:
        for file in sorted(folder.glob(pattern)):
            if not file.is_file():
                raise ModelUnavailable(f"{file} is {kind_of_file(file)}; point to a complete save_pretrained() folder")
            yield file


def _content(file: Path) -> str:
    """Return what a file says, as a hash; of settings, without those that change nothing."""
    if file.name not in _SETTINGS:
        return file_sha256(file)
    kept = {name: value for name, value in read_settings(file).items() if name not in _PROVENANCE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
