"""Training of any jobs: those that can share slots together, all others with plain PEFT, one after another."""

import logging
from collections.abc import Hashable, Iterator, Sequence

from clusterlora.engine import reference, training_loop
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import OnEpoch, TrainingJob, TrainingResult, diverged
from clusterlora.engine.kinds import ADAPTER_KINDS
from clusterlora.engine.progress import Progress
from clusterlora.errors import TrainingDiverged

log = logging.getLogger(__name__)


def train(
    base: BaseModel,
    jobs: Sequence[TrainingJob],
    *,
    micro_batch: int,
    run_log: Progress,
    halve_micro_batch: bool = False,
    checkpointing: bool = False,
    on_epoch: OnEpoch | None = None,
) -> Iterator[TrainingResult]:
    """Train adapters of any kinds and yield each as soon as it is finished; see `training_loop.train` for arguments and errors.

    Jobs that can share slots are trained together, whatever their ranks, alphas and seeds; other jobs after them, whose
    epochs are not shown.
    """
    failed: list[str] = []
    for group in groups(jobs):
        recipe = group[0].recipe
        reason = ADAPTER_KINDS[recipe.kind].why_not_stacked(base, recipe)
        options = {"micro_batch": micro_batch, "run_log": run_log, "halve_micro_batch": halve_micro_batch}
        try:
            if reason is None:
                yield from training_loop.train(base, group, **options, checkpointing=checkpointing, on_epoch=on_epoch)
            else:
                log.warning("training %d adapters one after another with PEFT: %s", len(group), reason)
                if checkpointing:
                    log.warning("checkpointing is left out for these: activations are kept")
                yield from reference.train(base, group, **options)
        except TrainingDiverged as error:
            failed += error.adapters
    if failed:
        raise diverged([job for job in jobs if job.name in failed])


def groups(jobs: Sequence[TrainingJob]) -> list[list[TrainingJob]]:
    """Return the jobs in groups that can share slots, in order of their first job; those of one kind without slots are a group, too."""
    by_slots: dict[Hashable, list[TrainingJob]] = {}
    for job in jobs:
        by_slots.setdefault(ADAPTER_KINDS[job.recipe.kind].slot_group(job.recipe) or job.recipe.kind, []).append(job)
    return list(by_slots.values())
