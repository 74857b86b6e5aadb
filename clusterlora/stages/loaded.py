"""The models of a study, loaded once per process."""

from functools import lru_cache

from clusterlora.models.base import BaseModel, Dtype, load_base
from clusterlora.models.embedding import load_embedder
from clusterlora.ports import Embedder
from clusterlora.settings import ModelSettings


def base_model(settings: ModelSettings) -> BaseModel:
    """Return the study's base model on this process's device: the first visible GPU, else the CPU."""
    import torch

    return _base(settings.base, settings.dtype, "cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=1)
def _base(name: str, dtype: Dtype, device: str) -> BaseModel:
    return load_base(name, dtype=dtype, device=device)


@lru_cache(maxsize=1)
def _embedder(name: str) -> Embedder:
    return load_embedder(name)


def embedder(settings: ModelSettings) -> Embedder:
    """Return the study's sentence embedding model."""
    return _embedder(settings.embedding)
