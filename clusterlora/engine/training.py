"""The engine that trains a group: the stacked one where possible, else plain PEFT."""

import logging
from collections.abc import Iterator, Sequence

from clusterlora.engine import reference, training_loop
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import TrainingJob, TrainingResult
from clusterlora.engine.progress import Progress
from clusterlora.engine.stacked_lora import targeted_layers
from clusterlora.errors import BadSettings

log = logging.getLogger(__name__)


def train(
    base: BaseModel, jobs: Sequence[TrainingJob], *, micro_batch: int, run_log: Progress, checkpointing: bool = False
) -> Iterator[TrainingResult]:
    """Train a group and yield each adapter as soon as it is finished; see `training_loop.train` for the arguments and errors."""
    reason = _why_not_stacked(base, jobs)
    if reason is None:
        return training_loop.train(base, jobs, micro_batch=micro_batch, run_log=run_log, checkpointing=checkpointing)
    log.warning("training %d adapters one after another with PEFT: %s", len(jobs), reason)
    return reference.train(base, jobs, micro_batch=micro_batch, run_log=run_log)


def _why_not_stacked(base: BaseModel, jobs: Sequence[TrainingJob]) -> str | None:
    """Return why these jobs cannot be trained in one stack; None if they can."""
    if jobs[0].kind == "prefix":
        return None
    if len({job.recipe.target_modules for job in jobs}) > 1:
        return "they have different target modules"
    try:
        targeted_layers(base.model, jobs[0].recipe.target_modules)
    except BadSettings as error:
        return str(error)
    return None
