"""The peers in training, which train one adapter after another: transformers' Trainer on a PEFT model, and TRL's SFTTrainer.

Both get the rows, order, batches, schedule and dtype of our engine, loss on response tokens only, and the fastest
settings that make sense: no evaluation, no logging, no checkpoints, no workers, no gradient checkpointing, no attention mask (right
padding under causal attention needs none).
"""

import importlib.util
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.measure import clock
from clusterlora.chat.encoder import TokenSequence
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import TrainingJob, batches
from clusterlora.engine.peft_folder import lora_config
from clusterlora.engine.ragged import RaggedRows


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds in optimiser steps, seconds outside them, and the mean loss of the steps."""

    step_seconds: float
    fixed_seconds: float
    mean_loss: float


class _StepClock(TrainerCallback):
    """Measures the time from the start of the first step to the end of the last."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self.first: float | None = None
        self.last = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self.first is None:
            self.first = clock(self._device)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if state.global_step == state.max_steps:
            self.last = clock(self._device)


def trl_is_installed() -> bool:
    return importlib.util.find_spec("trl") is not None


def train_with_trainer(base: BaseModel, job: TrainingJob, *, autocast: bool, model: PeftModel | None = None) -> Timing:
    """Train one adapter with transformers' Trainer and save it.

    Args:
        model: a PEFT model on the base, which goes on training and is left as it is, in place of one of PEFT's own.
    """

    def collate(rows: Sequence[TokenSequence]) -> dict[str, Tensor]:
        ids, predicts = RaggedRows.of(rows).padded(pad_id=base.pad_id)
        labels = ids.clone()
        labels[:, 1:][~predicts[:, :-1]] = -100
        labels[:, 0] = -100
        return {"input_ids": ids, "labels": labels}

    started = time.perf_counter()
    adapted: PeftModel = model or get_peft_model(base.model, lora_config(job.recipe, base=base.name))
    arguments = TrainingArguments(**_arguments(base, job, autocast=autocast))
    trainer = Trainer(model=adapted, args=arguments, train_dataset=_rows_in_order(job), data_collator=collate)
    return _finish(trainer, adapted, job, base, started, unload=model is None)


def train_with_trl(base: BaseModel, job: TrainingJob, *, autocast: bool, liger: bool = False) -> Timing:
    """Train one adapter with TRL's SFTTrainer on the same token ids and save it.

    Args:
        liger: with Liger's kernels, which stay in the base model and in its module afterwards.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    started = time.perf_counter()
    rows = [
        {
            "input_ids": list(row.ids),
            "labels": [token if is_response else -100 for token, is_response in zip(row.ids, row.is_response, strict=True)],
        }
        for row in _rows_in_order(job)
    ]
    arguments = SFTConfig(
        **_arguments(base, job, autocast=autocast),
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
        use_liger_kernel=liger,
    )
    trainer = SFTTrainer(
        model=base.model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=base.tokenizer,
        peft_config=lora_config(job.recipe, base=base.name),
    )
    try:
        return _finish(trainer, trainer.model, job, base, started)
    finally:
        # SFTTrainer replaces the base model's forward; the next trainer would wrap the replacement.
        base.model.__dict__.pop("forward", None)


def _rows_in_order(job: TrainingJob) -> list[TokenSequence]:
    """Return the rows of all steps in the order of our engine."""
    epochs = range(job.recipe.epochs)
    return [job.sequences[i] for epoch in epochs for batch in batches(job, epoch) for i in batch]


def _arguments(base: BaseModel, job: TrainingJob, *, autocast: bool) -> dict[str, Any]:
    recipe = job.recipe
    assert len(job.sequences) % recipe.batch_size == 0, "a ragged last batch would shift the batches of the next epoch"
    return {
        "output_dir": str(job.scratch),
        "per_device_train_batch_size": recipe.batch_size,
        "num_train_epochs": 1,  # the rows of all epochs follow one another in the data set
        "train_sampling_strategy": "sequential",
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": math.ceil(recipe.warmup_ratio * job.total_steps),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": "adamw_torch_fused",
        "bf16": autocast,
        "use_cpu": base.model.device.type == "cpu",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": base.model.device.type == "cuda",
        "remove_unused_columns": False,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }


def _finish(trainer: Trainer, model: PeftModel, job: TrainingJob, base: BaseModel, started: float, *, unload: bool = True) -> Timing:
    step_clock = _StepClock(base.model.device)
    trainer.add_callback(step_clock)
    trainer.remove_callback(PrinterCallback)
    try:
        result = trainer.train()
        folder: Path = job.scratch / "adapter"
        model.save_pretrained(str(folder))
    finally:
        if unload:
            model.unload()
    total = clock(base.model.device) - started
    assert step_clock.first is not None, "the trainer took no step"
    assert result.global_step == job.total_steps, f"{result.global_step} steps instead of {job.total_steps}"
    step_seconds = step_clock.last - step_clock.first
    return Timing(step_seconds, total - step_seconds, result.training_loss)
