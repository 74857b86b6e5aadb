"""The engine: trains many adapters on one frozen base in one pass, and answers with them; knows no study, store or flow.

What this module names is public and versioned (docs/engine.md); its submodules are not. Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusterlora.chat.encoder import TokenSequence
    from clusterlora.engine.adapter_jobs import AdapterJob
    from clusterlora.engine.base import BaseModel
    from clusterlora.engine.job import TrainingResult, UnfinishedAdapter
    from clusterlora.engine.kinds import ADAPTER_KINDS
    from clusterlora.engine.kinds.kind import AdapterKind
    from clusterlora.engine.library import generate, train_adapters
    from clusterlora.engine.progress import Progress, TrainingProgress
    from clusterlora.errors import BadData, BadSettings, ClusterLoraError, ModelUnavailable, OutOfMemory, TrainingDiverged
    from clusterlora.recipe import Recipe

__all__ = [
    "ADAPTER_KINDS",
    "AdapterJob",
    "AdapterKind",
    "BadData",
    "BadSettings",
    "BaseModel",
    "ClusterLoraError",
    "ModelUnavailable",
    "OutOfMemory",
    "Progress",
    "Recipe",
    "TokenSequence",
    "TrainingDiverged",
    "TrainingProgress",
    "TrainingResult",
    "UnfinishedAdapter",
    "generate",
    "train_adapters",
]

_MODULES = {
    "ADAPTER_KINDS": "clusterlora.engine.kinds",
    "AdapterJob": "clusterlora.engine.adapter_jobs",
    "AdapterKind": "clusterlora.engine.kinds.kind",
    "BaseModel": "clusterlora.engine.base",
    "Progress": "clusterlora.engine.progress",
    "Recipe": "clusterlora.recipe",
    "TokenSequence": "clusterlora.chat.encoder",
    "TrainingProgress": "clusterlora.engine.progress",
    "TrainingResult": "clusterlora.engine.job",
    "UnfinishedAdapter": "clusterlora.engine.job",
    "generate": "clusterlora.engine.library",
    "train_adapters": "clusterlora.engine.library",
}
"""Where a name is defined; the errors are in `clusterlora.errors`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "clusterlora.errors")), name)
