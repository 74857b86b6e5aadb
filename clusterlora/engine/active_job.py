"""A job that has a slot: its progress, and what its next optimiser step needs."""

import math
import time
from dataclasses import dataclass, field

from torch import Tensor

from clusterlora.chat.encoder import TokenSequence
from clusterlora.engine.job import TrainingJob, batches, learning_rate, out_of_patience
from clusterlora.engine.slot_adamw import SlotStep


@dataclass(slots=True, eq=False)
class ActiveJob:
    """A job with a slot. `losses` and `val_losses` are those of the steps and epochs so far, in nats per response token."""

    job: TrainingJob
    slot: int
    losses: list[float] = field(default_factory=list[float])
    val_losses: list[float] = field(default_factory=list[float])
    best: Tensor | None = None
    """The slot's parameters [n] after the epoch with the lowest val loss."""
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    """When its last checkpoint was written, on the clock of `time.monotonic`."""
    _batches_by_epoch: dict[int, list[list[int]]] = field(default_factory=dict[int, "list[list[int]]"])

    def batch(self, step: int) -> list[TokenSequence]:
        """Return the dialogues of an optimiser step, which is the next one or the one after it."""
        epoch, of_epoch = divmod(step, self.job.steps_per_epoch)
        of_epochs = self._batches_by_epoch
        if epoch not in of_epochs:
            # Two threads may ask: each sees a whole dictionary.
            self._batches_by_epoch = of_epochs = {n: of_epochs[n] for n in of_epochs if n == epoch - 1} | {epoch: batches(self.job, epoch)}
        return [self.job.sequences[i] for i in of_epochs[epoch][of_epoch]]

    def next_step(self) -> SlotStep:
        """Return the hyper-parameters of the next optimiser step, its learning rate as scheduled."""
        recipe = self.job.recipe
        rate = learning_rate(recipe, len(self.losses), self.job.total_steps)
        return SlotStep(rate, recipe.weight_decay, recipe.max_grad_norm)

    @property
    def has_diverged(self) -> bool:
        """Whether its last loss, or its last val loss, is not finite."""
        return not all(math.isfinite(loss) for loss in (*self.losses[-1:], *self.val_losses[-1:]))

    @property
    def is_at_epoch_end(self) -> bool:
        """Whether the last step ended an epoch."""
        return len(self.losses) % self.job.steps_per_epoch == 0

    @property
    def is_finished(self) -> bool:
        """Whether no step is left to take, or none would help."""
        return self.has_diverged or len(self.losses) == self.job.total_steps or out_of_patience(self.job.recipe, self.val_losses)
