"""Checkpoints of unfinished trainings: weights, both of AdamW's moments, the losses so far, and the best epoch's weights."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from clusterlora.durable import make_folder, put_in_place
from clusterlora.engine.job import TrainingJob

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 20.0
"""A checkpoint is due when the last one is older than this; repeating a short job is cheaper than checkpointing it."""
_FILE = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a training after as many steps as it has losses.

    Tensors are named `<layer>.lora_A.weight` and `.lora_B.weight`; `best` is empty without val losses.
    """

    weights: Mapping[str, torch.Tensor]
    first_moments: Mapping[str, torch.Tensor]
    second_moments: Mapping[str, torch.Tensor]
    losses: tuple[float, ...]
    val_losses: tuple[float, ...] = ()
    best: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


def is_due(saved: float) -> bool:
    """Return whether an adapter's last checkpoint is old enough for another one. `saved`: when it was written, by `time.monotonic`."""
    return time.monotonic() - saved > CHECKPOINT_SECONDS


def write(job: TrainingJob, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint in the job's scratch folder, atomically."""
    make_folder(job.scratch)
    groups = {"w": checkpoint.weights, "m": checkpoint.first_moments, "v": checkpoint.second_moments, "b": checkpoint.best}
    tensors = {f"{group}/{name}": tensor.contiguous() for group, by_name in groups.items() for name, tensor in by_name.items()}
    partial = job.scratch / (_FILE + ".partial")
    save_file(tensors, partial, metadata={"key": job.key, "losses": json.dumps([checkpoint.losses, checkpoint.val_losses])})
    put_in_place(partial, job.scratch / _FILE)


def read(job: TrainingJob) -> Checkpoint | None:
    """Return the job's last checkpoint; None if it has none, or a damaged one."""
    file = job.scratch / _FILE
    if not file.exists():
        return None
    try:
        return _read(job, file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("checkpoint %s of %s is damaged (%s); training starts from the beginning", file, job.name, error)
        return None


def _read(job: TrainingJob, file: Path) -> Checkpoint:
    groups: dict[str, dict[str, torch.Tensor]] = {"w": {}, "m": {}, "v": {}, "b": {}}
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        for key in opened.keys():  # noqa: SIM118  (safe_open is not iterable)
            group, _, name = key.partition("/")
            groups[group][name] = opened.get_tensor(key)
    assert metadata["key"] == job.key, f"the scratch folder of {job.key} holds a checkpoint of {metadata['key']}"
    losses, val_losses = (tuple(values) for values in json.loads(metadata["losses"]))
    return Checkpoint(groups["w"], groups["m"], groups["v"], losses, val_losses, groups["b"])
