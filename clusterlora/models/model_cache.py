"""The models of a study, loaded once per process."""

from functools import lru_cache

from clusterlora.models.base import BaseModel, load_base
from clusterlora.models.device import usual_device
from clusterlora.models.embedding import load_embedder
from clusterlora.ports.embedder import Embedder
from clusterlora.settings import DeviceMap, Dtype, ModelSettings, PreparedModel, Quantisation


def base_model(settings: PreparedModel) -> BaseModel:
    """Return the study's base model on this process's device: the first visible GPU or all of them, else the CPU."""
    return _base(settings.base, settings.dtype, settings.quantisation, settings.device_map, usual_device())


def embedder(settings: ModelSettings) -> Embedder:
    """Return the study's sentence embedding model, on the same device."""
    return _embedder(settings.embedding, usual_device())


@lru_cache(maxsize=1)
def _base(name: str, dtype: Dtype, quantisation: Quantisation, device_map: DeviceMap, device: str) -> BaseModel:
    return load_base(name, dtype=dtype, device=device, quantisation=quantisation, device_map=device_map)


@lru_cache(maxsize=1)
def _embedder(name: str, device: str) -> Embedder:
    return load_embedder(name, device=device)
