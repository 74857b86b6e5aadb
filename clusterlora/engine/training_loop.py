"""The engine: many adapters trained together in one pass over one frozen base.

A pass takes the next optimiser step of every active job. Their dialogues are the rows of one batch, sorted by length and split into chunks
of a token budget; one forward and backward pass per chunk adds each row's gradient to its own adapter; then every adapter is clipped,
scheduled and stepped separately. A finished job frees its slot for the longest job in the queue.

With n_k the response tokens of adapter k in its step, the loss of a pass is sum_k (1 / n_k) sum_(tokens of k) nll, so however the rows are
split into chunks, every adapter gets exactly the gradient of its own mean loss.
"""

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from clusterlora.chat.encoder import TokenSequence
from clusterlora.engine import checkpoint
from clusterlora.engine.backends import Backend
from clusterlora.engine.base import BaseModel
from clusterlora.engine.batch import RowSlots, TrainingBatch
from clusterlora.engine.dropout import Dropout
from clusterlora.engine.families.decoder import PAD_TO
from clusterlora.engine.job import TrainingJob, TrainingResult, batches, diverged, learning_rate, out_of_patience, pad_rows
from clusterlora.engine.kinds import ADAPTER_KINDS
from clusterlora.engine.kinds.kind import SlotRequest, Slots
from clusterlora.engine.linear_layers import linear_layer
from clusterlora.engine.load_balancing import partition_by_load
from clusterlora.engine.memory import allocation_failures, free_memory_bytes, tokens_per_chunk
from clusterlora.engine.packing import n_rows_that_fit
from clusterlora.engine.peft_folder import read_peft_tensors, write_adapter
from clusterlora.engine.progress import Progress
from clusterlora.engine.slot_adamw import SlotAdamW, SlotStep
from clusterlora.engine.worker_threads import WorkerThreads

log = logging.getLogger(__name__)

MAX_SLOTS = {"cpu": 32, "cuda": 256}
"""Adapters trained at once; more would not make the products more efficient."""
_SLOT_SHARE = 0.25
"""Share of the free memory that slots may take."""
_ACTIVATION_SHARE = {"cpu": 0.5, "cuda": 0.3}
"""Share of the free memory that the activations of one chunk may take; on a GPU, CUDA graphs hold memory of their own besides."""
_CHECKPOINT_SECONDS = 20.0
"""An epoch ends with a checkpoint if the adapter's last one is older than this; repeating a short job is cheaper than checkpointing it."""


@dataclass(slots=True)
class _ActiveJob:
    """A job with a slot, and its progress."""

    job: TrainingJob
    slot: int
    losses: list[float] = field(default_factory=list[float])
    val_losses: list[float] = field(default_factory=list[float])
    best: Tensor | None = None
    """The slot's parameters after the epoch with the lowest val loss."""
    epoch_batches: list[list[int]] = field(default_factory=list[list[int]])
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    def next_batch(self) -> list[int]:
        epoch, step = divmod(len(self.losses), self.job.steps_per_epoch)
        if step == 0:
            self.epoch_batches = batches(self.job, epoch)
        return self.epoch_batches[step]

    @property
    def at_epoch_end(self) -> bool:
        return len(self.losses) % self.job.steps_per_epoch == 0

    @property
    def finished(self) -> bool:
        return len(self.losses) == self.job.total_steps or out_of_patience(self.job.recipe, self.val_losses)


@dataclass(frozen=True, slots=True)
class _BatchRow:
    """A dialogue of an adapter's step (or of its val split), its index among them, and its loss weight 1 / n_k."""

    active: _ActiveJob
    sequence: TokenSequence
    index: int
    weight: float


def train(
    base: BaseModel, jobs: Sequence[TrainingJob], *, micro_batch: int, run_log: Progress, checkpointing: bool = False
) -> Iterator[TrainingResult]:
    """Train adapters together and yield each as soon as it is finished.

    A job resumes after its last checkpointed epoch. A `micro_batch` below the recipe's batch size reduces the token budget of a chunk in
    proportion and changes no result. All jobs must share slots: `AdapterKind.slot_group` returns the same for each.

    Args:
        checkpointing: recompute activations in the backward pass instead of saving them: less memory, a third more time.

    Raises:
        OutOfMemory: an allocation failed; the checkpoints stay.
        TrainingDiverged: a loss is not finite. Raised after all other adapters have finished.
        BadSettings: the base has no plain Linear layers of these names, or does not support checkpointing.
    """
    with allocation_failures(micro_batch=micro_batch, doing=f"training {jobs[0].name if len(jobs) == 1 else f'{len(jobs)} adapters'}"):
        yield from _Trainer(base, jobs, micro_batch=micro_batch, run_log=run_log, checkpointing=checkpointing).run()


class _Trainer:
    """The active jobs, the queue, and the base they share."""

    def __init__(self, base: BaseModel, jobs: Sequence[TrainingJob], *, micro_batch: int, run_log: Progress, checkpointing: bool) -> None:
        self._base = base
        self._run_log = run_log
        # Longest first: the thousands of steps of the unified adapter share their passes with everything else.
        self._queue = deque(sorted(jobs, key=lambda job: -job.total_steps))
        self._rows_per_chunk = micro_batch * MAX_SLOTS[base.model.device.type]
        folders = sorted({job.frozen_adapter for job in jobs if job.frozen_adapter})
        # One slot per frozen adapter; slot 0 is none.
        self._frozen_slot = {None: 0} | {folder: slot for slot, folder in enumerate(folders, start=1)}
        self._stack, self._backend = _slots_and_backend(base, jobs, folders, checkpointing=checkpointing)
        self._optimiser = SlotAdamW(self._stack.parameters, self._stack.gradients)
        self._workers = WorkerThreads(base.model.device)
        # A backend that modifies the model during a pass cannot run two passes at once.
        self._n_shards = self._workers.n_workers if self._backend.reentrant else 1
        # Threads share memory and caches.
        n_tokens = min(_tokens_per_pass(base), self._tokens_that_fit(jobs)) // self._n_shards
        self._tokens_per_chunk = max(1, n_tokens * micro_batch // max(job.recipe.batch_size for job in jobs))
        self._free_slots = list(range(len(self._stack.parameters)))
        self._active: list[_ActiveJob] = []
        self._diverged: list[_ActiveJob] = []
        self._started = time.monotonic()
        self._n_tokens = self._n_done = 0
        self._dropout = Dropout(self._stack.n_features, device=base.model.device, dtype=self._stack.parameters.dtype)

    def _tokens_that_fit(self, jobs: Sequence[TrainingJob]) -> int:
        """Return how many tokens fit in free memory, given the activation bytes per token that the backward pass keeps."""
        longest = max((sequence for job in jobs for sequence in job.sequences), key=lambda sequence: len(sequence.ids))
        per_token, free = self._backend.bytes_per_token(torch.tensor([longest.ids])), free_memory_bytes(self._base.model.device)
        log.info(
            "%d adapters at once; activations take %.0f KiB per token, %.1f GiB of memory are free",
            len(self._stack.parameters),
            per_token / 2**10,
            free / 2**30,
        )
        return max(1, int(_ACTIVATION_SHARE[self._base.model.device.type] * free / per_token))

    def run(self) -> Iterator[TrainingResult]:
        try:
            while self._admit():
                if finished := [active for active in self._active if active.finished]:
                    for active in finished:
                        if self._is_finite(active):
                            yield self._finish(active)
                        else:
                            self._mark_diverged(active)
                    continue
                self._step(self._forward_backward())
                self._end_epochs()
        finally:
            self._workers.close()
            self._backend.close()
        if self._diverged:
            raise diverged([active.job for active in self._diverged])

    def _admit(self) -> bool:
        """Fill the free slots from the queue; return whether any job is active."""
        while self._free_slots and self._queue:
            active = _ActiveJob(self._queue.popleft(), self._free_slots.pop())
            active.losses = self._initialise(active)
            self._active.append(active)
        return bool(self._active)

    def _initialise(self, active: _ActiveJob) -> list[float]:
        """Set a slot's parameters and moments from its checkpoint, else from `init_from`, else to the initial A; return its past losses."""
        stack, job, recipe, optimiser = self._stack, active.job, active.job.recipe, self._optimiser
        saved = checkpoint.read(job)
        optimiser.reset(active.slot, n_steps=len(saved.losses) if saved else 0)
        if saved is not None:
            for matrix, tensors in zip(
                (stack.parameters, optimiser.first, optimiser.second),
                (saved.weights, saved.first_moments, saved.second_moments),
                strict=True,
            ):
                stack.write(active.slot, matrix, tensors)
            active.val_losses = list(saved.val_losses)
            if saved.best:
                active.best = torch.zeros_like(stack.parameters[active.slot])
                stack.write(0, active.best[None], saved.best)
            log.info("%s resumes after step %d of %d", job.name, len(saved.losses), job.total_steps)
            return list(saved.losses)
        initial = read_peft_tensors(job.init_from) if job.init_from else stack.initial(rank=recipe.rank, seed=recipe.seed)
        stack.write(active.slot, stack.parameters, initial)
        return []

    def _forward_backward(self) -> list[float]:
        """Compute the gradient of every active job's mean loss on its next batch; return the losses, in the jobs' order."""
        self._stack.gradients.zero_()
        return self._losses([(active, [active.job.sequences[i] for i in active.next_batch()]) for active in self._active], backward=True)

    def _losses(self, sequences_by_job: Sequence[tuple[_ActiveJob, Sequence[TokenSequence]]], *, backward: bool) -> list[float]:
        """Return every job's mean loss per response token of its dialogues; `backward` adds its gradient to the job's slot."""
        rows = []
        for active, sequences in sequences_by_job:
            n_tokens = sum(sequence.n_response_tokens for sequence in sequences)
            rows += [_BatchRow(active, sequence, index, 1 / n_tokens) for index, sequence in enumerate(sequences)]
        loss_by_slot = torch.zeros(len(self._stack.parameters), dtype=torch.float64)
        for shard_losses in self._workers.map(partial(self._run_shard, backward=backward), self._shards(rows)):
            loss_by_slot += shard_losses
        return [float(loss_by_slot[active.slot]) for active, _ in sequences_by_job]

    def _shards(self, rows: Sequence[_BatchRow]) -> list[list[_BatchRow]]:
        """Return the rows in one shard per worker, balanced by tokens; a slot's rows share a shard, so one thread adds to its gradient."""
        tokens = Counter[int]()
        for row in rows:
            tokens[row.active.slot] += len(row.sequence.ids)
        shard_by_slot = {slot: number for number, slots in enumerate(partition_by_load(tokens, self._n_shards)) for slot in slots}
        shards: list[list[_BatchRow]] = [[] for _ in range(self._n_shards)]
        for row in rows:
            shards[shard_by_slot[row.active.slot]].append(row)
        return [shard for shard in shards if shard]

    def _run_shard(self, rows: Sequence[_BatchRow], *, backward: bool) -> Float[Tensor, " k"]:
        """Run rows chunk by chunk; return each slot's loss."""
        loss_by_slot = torch.zeros(len(self._stack.parameters), dtype=torch.float64)
        for chunk in self._chunks(rows):
            loss_by_slot.index_add_(0, torch.tensor([row.active.slot for row in chunk]), self._run_chunk(chunk, backward=backward))
        return loss_by_slot

    def _chunks(self, rows: Sequence[_BatchRow]) -> Iterator[list[_BatchRow]]:
        """Yield the rows, longest first, in chunks within the token budget; a single row may exceed it."""
        rows = sorted(rows, key=lambda row: -len(row.sequence.ids))
        start = 0
        while start < len(rows):
            lengths = [len(row.sequence.ids) for row in rows[start : start + self._rows_per_chunk]]
            size = n_rows_that_fit(lengths, self._tokens_per_chunk, self._backend.padding)
            yield rows[start : start + size]
            start += size

    def _run_chunk(self, rows: Sequence[_BatchRow], *, backward: bool) -> Float[Tensor, " b"]:
        """Run one chunk; return each row's share of its adapter's loss."""
        ids, predicts = pad_rows([row.sequence for row in rows], pad_id=self._base.pad_id, multiple=PAD_TO)
        frozen_slots = torch.tensor([self._frozen_slot[row.active.job.frozen_adapter] for row in rows])
        weights = torch.tensor([row.weight for row in rows], dtype=torch.float64)
        batch = TrainingBatch(ids, predicts, self._row_slots(rows, dropout=backward), frozen_slots, weights)
        return self._backend(batch, backward=backward).cpu()

    def _row_slots(self, rows: Sequence[_BatchRow], *, dropout: bool) -> RowSlots:
        recipes = [row.active.job.recipe for row in rows]
        like = self._stack.parameters
        slot = torch.tensor([row.active.slot for row in rows], device=like.device)
        scale = torch.tensor([[ADAPTER_KINDS[recipe.kind].scale(recipe)] for recipe in recipes], device=like.device, dtype=like.dtype)
        if not dropout:
            return RowSlots(slot, scale)
        keys = [(row.active.job.recipe.seed, len(row.active.losses), row.index) for row in rows]
        masks = self._dropout.masks([recipe.dropout for recipe in recipes], keys)
        return RowSlots(slot, scale if masks is None else scale * masks)

    def _step(self, losses: Sequence[float]) -> None:
        """Clip, schedule and step every adapter in its slot; mark those as diverged whose loss is not finite."""
        steps = {}
        for active, loss in zip(list(self._active), losses, strict=True):
            if not math.isfinite(loss):
                self._mark_diverged(active)
                continue
            recipe = active.job.recipe
            rate = learning_rate(recipe, len(active.losses), active.job.total_steps)
            steps[active.slot] = SlotStep(rate, recipe.weight_decay, recipe.max_grad_norm)
            active.losses.append(loss)
            batch = active.epoch_batches[(len(active.losses) - 1) % active.job.steps_per_epoch]
            self._n_tokens += sum(len(active.job.sequences[i].ids) for i in batch)
        self._optimiser.step(steps)
        tokens_per_second = self._n_tokens / (time.monotonic() - self._started)
        for active in self._active:
            self._run_log.advance(1, loss=active.losses[-1], adapters_done=self._n_done, tokens_per_second=tokens_per_second)

    def _end_epochs(self) -> None:
        """For jobs at the end of an epoch, compute the val loss if they have patience, and write a checkpoint if it is due."""
        ended = [active for active in self._active if active.at_epoch_end]
        validated = [active for active in ended if active.job.recipe.patience]
        losses = self._losses([(active, active.job.val) for active in validated], backward=False)
        for active, loss in zip(validated, losses, strict=True):
            if loss < min(active.val_losses, default=math.inf):
                active.best = self._stack.parameters[active.slot].clone()
            active.val_losses.append(loss)
            if not math.isfinite(loss):
                self._mark_diverged(active)
        for active in ended:
            if active in self._active and time.monotonic() - active.saved > _CHECKPOINT_SECONDS:
                self._write_checkpoint(active)

    def _mark_diverged(self, active: _ActiveJob) -> None:
        self._diverged.append(active)
        self._evict(active)

    def _write_checkpoint(self, active: _ActiveJob) -> None:
        stack, rank, optimiser = self._stack, active.job.recipe.rank, self._optimiser
        weights, *moments = (stack.read(active.slot, matrix, rank=rank) for matrix in (stack.parameters, optimiser.first, optimiser.second))
        best = {} if active.best is None else stack.read(0, active.best[None], rank=rank)
        checkpoint.write(
            active.job, checkpoint.Checkpoint(weights, moments[0], moments[1], tuple(active.losses), tuple(active.val_losses), best)
        )
        active.saved = time.monotonic()

    def _is_finite(self, active: _ActiveJob) -> bool:
        """Return whether the last step left finite weights: no loss has been computed with them."""
        return bool(self._weights_of(active).isfinite().all())

    def _weights_of(self, active: _ActiveJob) -> Float[Tensor, " n"]:
        return self._stack.parameters[active.slot] if active.best is None else active.best

    def _finish(self, active: _ActiveJob) -> TrainingResult:
        """Write the adapter's PEFT folder and free its slot."""
        job, recipe = active.job, active.job.recipe
        folder = job.scratch / "adapter"
        tensors = self._stack.read(0, self._weights_of(active)[None], rank=recipe.rank)
        write_adapter(folder, tensors, ADAPTER_KINDS[recipe.kind].peft_config(self._base, recipe))
        self._evict(active)
        self._n_done += 1
        if n_skipped := job.total_steps - len(active.losses):
            self._run_log.advance(n_skipped, adapters_done=self._n_done)
        return TrainingResult(job, folder, tuple(active.losses), time.monotonic() - active.started, tuple(active.val_losses))

    def _evict(self, active: _ActiveJob) -> None:
        self._active.remove(active)
        self._free_slots.append(active.slot)
        self._stack.parameters[active.slot].zero_()


def _tokens_per_pass(base: BaseModel) -> int:
    """Return the tokens of one pass at the full micro-batch; the widest activation is a gate and an up projection, concatenated."""
    head = base.model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    layers = [layer for module in base.model.modules() if module is not head and (layer := linear_layer(module)) is not None]
    widest = 2 * max((layer.d_out for layer in layers), default=base.model.config.hidden_size)
    return tokens_per_chunk(widest, base.model.device, base.model.dtype)


def _slots_and_backend(
    base: BaseModel, jobs: Sequence[TrainingJob], frozen_adapters: Sequence[Path], *, checkpointing: bool
) -> tuple[Slots, Backend]:
    """Return as many slots as the jobs need and memory affords, and the backend that trains them."""
    largest = max((job.recipe for job in jobs), key=lambda recipe: recipe.rank)
    kind = ADAPTER_KINDS[largest.kind]
    request = SlotRequest(
        recipe=largest,
        n_slots=_affordable_slots(base, jobs, kind.n_parameters(base, largest)),
        rank=largest.rank,
        probe=jobs[0].sequences[0].ids[:8],
        frozen_adapters=tuple(frozen_adapters),
        checkpointing=checkpointing,
    )
    return kind.slots(base, request)


def _affordable_slots(base: BaseModel, jobs: Sequence[TrainingJob], n_parameters: int) -> int:
    """Return the number of slots; each holds parameters, gradients, clipped gradients and two moments in float32."""
    slot_bytes = 4 * 5 * n_parameters
    return max(1, min(len(jobs), MAX_SLOTS[base.model.device.type], int(_SLOT_SHARE * free_memory_bytes(base.model.device) / slot_bytes)))
