"""Where a training stands after a whole epoch: weights, both of AdamW's moments, the losses so far, and its best epoch's weights."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from clusterlora.durable import make_folder, put_in_place
from clusterlora.training.job import TrainingJob

log = logging.getLogger(__name__)

_FILE = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class State:
    """Tensors are named `<layer>.lora_A.weight` and `<layer>.lora_B.weight` in all four; `best` is empty without val losses."""

    weights: Mapping[str, torch.Tensor]
    first_moments: Mapping[str, torch.Tensor]
    second_moments: Mapping[str, torch.Tensor]
    losses: tuple[float, ...]
    val_losses: tuple[float, ...] = ()
    best: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


def write(job: TrainingJob, state: State) -> None:
    """Keep the state in the job's scratch folder; until it is there whole, the one before stays."""
    make_folder(job.scratch)
    parts = {"w": state.weights, "m": state.first_moments, "v": state.second_moments, "b": state.best}
    tensors = {f"{part}/{name}": tensor.contiguous() for part, named in parts.items() for name, tensor in named.items()}
    partial = job.scratch / (_FILE + ".partial")
    save_file(tensors, partial, metadata={"key": job.key, "losses": json.dumps([state.losses, state.val_losses])})
    put_in_place(partial, job.scratch / _FILE)


def read(job: TrainingJob) -> State | None:
    """Return the job's last checkpoint; None when it has none, or one that is damaged."""
    file = job.scratch / _FILE
    if not file.exists():
        return None
    try:
        return _read(job, file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as damage:
        log.warning("checkpoint %s of %s is damaged (%s); %s starts from the beginning", file, job.spec.name, damage, job.spec.name)
        return None


def _read(job: TrainingJob, file: Path) -> State:
    parts: dict[str, dict[str, torch.Tensor]] = {"w": {}, "m": {}, "v": {}, "b": {}}
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        for key in opened.keys():  # noqa: SIM118  (not a dict)
            part, _, name = key.partition("/")
            parts[part][name] = opened.get_tensor(key)
    assert metadata["key"] == job.key, f"checkpoint of {metadata['key']} lies in the scratch folder of {job.key}"
    losses, val_losses = (tuple(values) for values in json.loads(metadata["losses"]))
    return State(parts["w"], parts["m"], parts["v"], losses, val_losses, parts["b"])
