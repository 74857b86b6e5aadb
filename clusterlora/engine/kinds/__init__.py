"""The kinds of adapters, by the name that `recipe.kind` chooses them by."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterlora.catalog import Catalog
from clusterlora.engine.kinds.dora import Dora
from clusterlora.engine.kinds.ia3 import Ia3
from clusterlora.engine.kinds.kind import AdapterKind
from clusterlora.engine.kinds.lora import Lora
from clusterlora.engine.kinds.prefix import Prefix
from clusterlora.engine.kinds.rslora import RankStabilisedLora
from clusterlora.errors import BadData

if TYPE_CHECKING:
    from torch import Tensor

    from clusterlora.engine.stacked import Weights

ADAPTER_KINDS: Catalog[AdapterKind] = Catalog(
    "adapter kind",
    {
        "lora": Lora(),
        "rslora": RankStabilisedLora(),
        "dora": Dora(),
        "ia3": Ia3(),
        "prefix": Prefix(),
    },
)


def kind_of(folder: Path) -> AdapterKind:
    """Return the kind of the adapter in a PEFT folder.

    Raises:
        BadData: there is no readable `adapter_config.json`, or no kind is described by it.
    """
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadData(f"{folder} is not a PEFT adapter: {file.name} cannot be read ({error}); save it with save_pretrained") from error
    return _kind_by(config, name=folder.name)


def _kind_by(config: Mapping[str, Any], *, name: str) -> AdapterKind:
    for kind in ADAPTER_KINDS.values():
        if kind.describes(config):
            return kind
    raise BadData(f"adapter {name} is {config.get('peft_type')}; known kinds are {', '.join(ADAPTER_KINDS)}")


def read_weights(folder: Path) -> "Weights":
    """Return what the adapter in a PEFT folder adds to its base, whatever its kind.

    Raises:
        BadData: as `kind_of`, or its weights are no safetensors, or hold what its kind does not.
    """
    from safetensors.torch import load_file

    from clusterlora.engine.stacked import Weights

    kind_of(folder)
    config, file = json.loads((folder / "adapter_config.json").read_bytes()), folder / "adapter_model.safetensors"
    if not file.is_file():
        raise BadData(f"{folder} has no {file.name}; save it with save_pretrained, pickled weights are never loaded")
    return weights_of(config, load_file(file), name=folder.name) or Weights(peft_folder=folder)


def weights_of(config: Mapping[str, Any], tensors: "Mapping[str, Tensor]", *, name: str) -> "Weights | None":
    """Return what an adapter adds to its base, from what PEFT saves of it; None where PEFT alone can add it, from its folder.

    Raises:
        BadData: no kind is described by the configuration, or the tensors are not what its kind has; `name` is the adapter's in errors.
    """
    return _kind_by(config, name=name).weights_of(config, tensors, name=name)
