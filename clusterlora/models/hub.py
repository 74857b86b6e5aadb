"""Model snapshots of the Hugging Face Hub, without any file that could be a pickle."""

import re
from collections.abc import Sequence
from pathlib import Path

from clusterlora.errors import ModelUnavailable
from clusterlora.models.loading import first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SAFE_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def hub_snapshot(name: str, *, kind: str, alternatives: Sequence[str], ignore: Sequence[str] = ()) -> Path:
    """Return the local folder of a hub model, downloaded if necessary; the folder's name is its commit.

    Args:
        kind: "base model" or "embedding model", for the message.
        alternatives: models that need no hub, for the message.
        ignore: file patterns of the repository to leave out.

    Raises:
        ModelUnavailable: not a hub id, no such model, no access or no network.
    """
    fix = f"; without the hub use {', '.join(alternatives)} or a local folder"
    if not HUB_ID.fullmatch(name):
        raise ModelUnavailable(f"{kind} {name!r} is neither a folder on this machine nor a hub id{fix}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(SAFE_FILES), ignore_patterns=list(ignore)))
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors and ValueErrors
        raise ModelUnavailable(f"{kind} {name!r} could not be fetched from the hub ({first_line(error)}){fix}") from error
