"""The engine: many adapters trained together over one frozen base.

A job with a slot is active. Every pass takes the next optimiser step of all active jobs: their dialogues are the rows of one batch, whose
gradients end in the slots (`engine.passes`); then each slot is clipped, scheduled and stepped by itself. A finished job frees its slot for
the longest job in the queue.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing

from clusterlora.engine.active_job import ActiveJob
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import OnEpoch, TrainingJob, TrainingResult, diverged
from clusterlora.engine.memory import BatchSize
from clusterlora.engine.passes import Passes
from clusterlora.engine.progress import Progress, StepReport
from clusterlora.engine.training_slots import TrainingSlots


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
    """Train adapters together and yield each as soon as it is finished.

    A job resumes after the step of its last checkpoint. A `micro_batch` below the recipe's batch size reduces the token budget of a
    chunk in proportion and changes no result. All jobs must share slots: `AdapterKind.slot_group` returns the same for each.

    Args:
        halve_micro_batch: when an allocation fails, go on from the checkpoints with half the micro-batch.
        checkpointing: recompute activations in the backward pass instead of saving them: less memory, a third more time.
        on_epoch: called after every epoch of an adapter but its last; the model is then as it was, so it may answer.

    Raises:
        OutOfMemory: an allocation failed, and the micro-batch is 1 or is not to be halved; the checkpoints stay.
        TrainingDiverged: a loss is not finite. Raised after all other adapters have finished.
        BadSettings: the base has no plain Linear layers of these names, or does not support checkpointing.
    """
    # Longest first: the thousands of steps of the unified adapter share their passes with everything else.
    unfinished = sorted(jobs, key=lambda job: -job.total_steps)
    failed, report = list[TrainingJob](), StepReport(run_log)
    size = BatchSize(micro_batch, halve=halve_micro_batch)
    subject = jobs[0].name if len(jobs) == 1 else f"{len(jobs)} adapters"
    while unfinished:
        with (
            size.attempt(f"training {subject}"),
            closing(TrainingSlots(base, unfinished, checkpointing=checkpointing)) as slots,
            closing(Passes(base, slots, unfinished, micro_batch=size.value)) as passes,
        ):
            queue, active = deque(unfinished), list[ActiveJob]()
            while queue or active:
                while queue and slots.has_free:
                    active.append(slots.admit(queue.popleft()))
                    report.began(active[-1].job, len(active[-1].losses))

                # One optimiser step of every adapter. One that resumed may have none left.
                batches = {adapter: adapter.batch(len(adapter.losses)) for adapter in active if not adapter.is_finished}
                losses = passes.forward_backward(batches)
                slots.step(losses)
                for adapter, batch in batches.items():
                    if not adapter.has_diverged:
                        report.stepped(adapter.job, batch, losses[adapter])

                # With patience the val loss of an epoch says which weights to keep.
                ended = [adapter for adapter in batches if adapter.is_at_epoch_end and not adapter.has_diverged]
                validated = {adapter: adapter.job.val for adapter in ended if adapter.job.recipe.patience}
                for adapter, val_loss in passes.forward(validated).items():
                    slots.record_val_loss(adapter, val_loss)
                slots.write_due_checkpoint(batches)
                for adapter in ended:
                    if on_epoch is not None and not adapter.is_finished:
                        slots.show(adapter, on_epoch)
                for adapter, result in slots.finish([adapter for adapter in active if adapter.is_finished]):
                    active.remove(adapter)
                    unfinished.remove(adapter.job)
                    if result is None:
                        failed.append(adapter.job)
                    else:
                        report.finished(result)
                        yield result
    if failed:
        raise diverged(failed)
