"""The slots of a training: how the state of a job gets into one, from a checkpoint or from the start, and out again.

legend   K number of slots, n parameters of an adapter
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from clusterlora.engine import checkpoint
from clusterlora.engine.active_job import ActiveJob
from clusterlora.engine.backends import Backend
from clusterlora.engine.base import BaseModel
from clusterlora.engine.job import OnEpoch, TrainingJob, TrainingResult, UnfinishedAdapter
from clusterlora.engine.kinds import ADAPTER_KINDS
from clusterlora.engine.kinds.kind import SlotRequest, Slots
from clusterlora.engine.memory import free_memory_bytes
from clusterlora.engine.peft_folder import read_peft_tensors, write_adapter
from clusterlora.engine.slot_adamw import SlotAdamW
from clusterlora.recipe import Recipe

if TYPE_CHECKING:
    from peft import PeftConfig

log = logging.getLogger(__name__)

MAX_SLOTS = {"cpu": 32, "cuda": 256}
"""Adapters trained at once; more would not make the products more efficient."""
SLOT_BYTES_PER_PARAMETER = 4 * 5
"""Parameters, gradients and two moments in float32, and clipped gradients or, for kernels, a copy of the parameters in the base's dtype."""
_WRITERS = 8
"""Threads that write adapters."""
_WRITING_SHARE = 0.02
"""Share of the time that checkpoints may take."""
_LOOK_SECONDS = 1.0
"""How often it is asked whether one is due: a step of hundreds of adapters may take milliseconds."""
_SLOT_SHARE = 0.25
"""Share of the free memory that slots may take."""


class TrainingSlots:
    """Parameters, gradients and moments of the active jobs, and the backend that computes the gradients."""

    def __init__(self, base: BaseModel, jobs: Sequence[TrainingJob], *, checkpointing: bool) -> None:
        """Allocate as many slots as the jobs need and memory affords; jobs share slots, `AdapterKind.slot_group` is the same for each.

        Raises:
            BadSettings: the base has no plain Linear layers of these names, or does not support checkpointing.
        """
        self._base = base
        folders = sorted({job.frozen_adapter for job in jobs if job.frozen_adapter})
        self.frozen_slot: dict[Path | None, int] = {None: 0} | {folder: slot for slot, folder in enumerate(folders, start=1)}
        """The slot of each frozen adapter; slot 0 is none."""
        self.stack, self.backend = _slots_and_backend(base, jobs, folders, checkpointing=checkpointing)
        self.optimiser = SlotAdamW(self.stack.parameters, self.stack.gradients)
        self._free = list(range(len(self)))
        self._initial_rows: dict[tuple[int, int], Tensor] = {}
        """The last one drawn, by rank and seed."""
        self._configs: dict[Recipe, PeftConfig] = {}
        self._next_look = 0.0
        """When a checkpoint may be written again, on the clock of `time.monotonic`."""

    def __len__(self) -> int:
        return len(self.stack.parameters)

    @property
    def has_free(self) -> bool:
        """Whether a job can be admitted."""
        return bool(self._free)

    def admit(self, job: TrainingJob) -> ActiveJob:
        """Give a job a slot: as its checkpoint left it, else with the weights of `init_from`, else with the initial ones."""
        active = ActiveJob(job, self._free.pop())
        stack, recipe, optimiser = self.stack, job.recipe, self.optimiser
        saved = checkpoint.read(job)
        optimiser.reset(active.slot, n_steps=len(saved.losses) if saved else 0)
        if saved is None:
            if job.init_from:
                stack.write(active.slot, stack.parameters, read_peft_tensors(job.init_from))
            else:
                stack.parameters[active.slot] = self._initial_row(recipe.rank, recipe.seed)
            return active
        stack.write(active.slot, stack.parameters, saved.weights)
        stack.write(active.slot, optimiser.first, saved.first_moments)
        stack.write(active.slot, optimiser.second, saved.second_moments)
        active.losses, active.val_losses = list(saved.losses), list(saved.val_losses)
        if saved.best:
            active.best = torch.zeros_like(stack.parameters[active.slot])
            stack.write(0, active.best[None], saved.best)
        log.info("%s resumes after step %d of %d", job.name, len(saved.losses), job.total_steps)
        return active

    def _initial_row(self, rank: int, seed: int) -> Float[Tensor, " n"]:
        """Return what adapters of this rank and seed start from; those of one study have one seed."""
        if (rank, seed) not in self._initial_rows:
            row = torch.zeros_like(self.stack.parameters[:1])
            self.stack.write(0, row, self.stack.initial(rank=rank, seed=seed))
            self._initial_rows = {(rank, seed): row[0]}
        return self._initial_rows[rank, seed]

    def step(self, losses: Mapping[ActiveJob, float]) -> None:
        """Clip, schedule and step every slot by itself, but for those of losses that are not finite; record all losses."""
        self.optimiser.step({active.slot: active.next_step() for active, loss in losses.items() if math.isfinite(loss)})
        for active, loss in losses.items():
            active.losses.append(loss)

    def record_val_loss(self, active: ActiveJob, loss: float) -> None:
        """Record the val loss of an epoch, and keep the weights of the epoch with the lowest."""
        if loss < min(active.val_losses, default=math.inf):
            active.best = self.stack.parameters[active.slot].clone()
        active.val_losses.append(loss)

    def write_due_checkpoint(self, trained: Iterable[ActiveJob]) -> None:
        """Write the checkpoint of the unfinished adapter whose last one is oldest, if that is due.

        One at a time, and then none until the share of the time that writing may take is kept: those of hundreds of adapters, whose epochs
        may end together, would hold up their training. A crash costs an adapter what it has learned since its turn.
        """
        began = time.monotonic()
        if began < self._next_look:
            return
        oldest = min((one for one in trained if not one.is_finished), key=lambda one: one.saved, default=None)
        if oldest is None or not checkpoint.is_due(oldest.saved):
            self._next_look = began + _LOOK_SECONDS
            return
        self._write_checkpoint(oldest)
        ended = time.monotonic()
        self._next_look = ended + (ended - began) / _WRITING_SHARE

    def _write_checkpoint(self, active: ActiveJob) -> None:
        """Write weights, moments and losses; a later `admit` goes on from there."""
        stack, rank, optimiser = self.stack, active.job.recipe.rank, self.optimiser
        weights, *moments = (stack.read(active.slot, matrix, rank=rank) for matrix in (stack.parameters, optimiser.first, optimiser.second))
        best = {} if active.best is None else stack.read(0, active.best[None], rank=rank)
        state = checkpoint.Checkpoint(weights, moments[0], moments[1], tuple(active.losses), tuple(active.val_losses), best)
        checkpoint.write(active.job, state)
        active.saved = time.monotonic()

    def show(self, active: ActiveJob, on_epoch: OnEpoch) -> None:
        """Call a function with an adapter that goes on after this epoch, while the model is as it was before training."""
        job = active.job
        with self.backend.model_restored():
            unfinished = UnfinishedAdapter(job, len(active.losses) // job.steps_per_epoch, lambda: self._write(active, "after_epoch"))
            on_epoch(unfinished)

    def finish(self, finished: Sequence[ActiveJob]) -> Iterator[tuple[ActiveJob, TrainingResult | None]]:
        """Free the slots of jobs; yield each with its PEFT folder written, or with None where its losses or weights are not finite.

        Jobs of one length end together, and files are written by several threads.
        """
        if not finished:
            return
        with ThreadPoolExecutor(min(len(finished), _WRITERS)) as writers:
            yield from zip(finished, writers.map(self._finish, finished), strict=True)

    def _finish(self, active: ActiveJob) -> TrainingResult | None:
        job, result = active.job, None
        # No loss has been computed with the weights of the last step.
        if not active.has_diverged and bool(self._weights_of(active).isfinite().all()):
            folder = self._write(active, "adapter")
            seconds = time.monotonic() - active.started
            result = TrainingResult(job, folder, tuple(active.losses), seconds, tuple(active.val_losses))
        self.stack.parameters[active.slot].zero_()
        self._free.append(active.slot)
        return result

    def close(self) -> None:
        """Restore the model and let go of the slots, which a retry needs the memory of."""
        self.backend.close()
        self._initial_rows.clear()
        del self.backend, self.stack, self.optimiser

    def _write(self, active: ActiveJob, folder_name: str) -> Path:
        """Write a job's weights, those of its best epoch if it has patience, and return their PEFT folder."""
        recipe, folder = active.job.recipe, active.job.scratch / folder_name
        tensors = self.stack.read(0, self._weights_of(active)[None], rank=recipe.rank)
        if recipe not in self._configs:
            self._configs[recipe] = ADAPTER_KINDS[recipe.kind].peft_config(self._base, recipe)
        write_adapter(folder, tensors, self._configs[recipe])
        return folder

    def _weights_of(self, active: ActiveJob) -> Float[Tensor, " n"]:
        return self.stack.parameters[active.slot] if active.best is None else active.best


def _slots_and_backend(
    base: BaseModel, jobs: Sequence[TrainingJob], frozen_adapters: Sequence[Path], *, checkpointing: bool
) -> tuple[Slots, Backend]:
    largest = max((job.recipe for job in jobs), key=lambda recipe: recipe.rank)
    kind = ADAPTER_KINDS[largest.kind]
    request = SlotRequest(
        recipe=largest,
        n_slots=affordable_slots(
            min(len(jobs), MAX_SLOTS[base.model.device.type]),
            SLOT_BYTES_PER_PARAMETER * kind.n_parameters(base, largest),
            free_memory_bytes(base.model.device),
        ),
        rank=largest.rank,
        probe=jobs[0].sequences[0].ids[:8],
        frozen_adapters=tuple(frozen_adapters),
        checkpointing=checkpointing,
    )
    return kind.slots(base, request)


def affordable_slots(n_most: int, slot_bytes: int, free: int) -> int:
    """Return the number of slots, at least one and `n_most` at the most, that take their share of the free memory."""
    return max(1, min(n_most, int(_SLOT_SHARE * free / slot_bytes)))
