"""The engine: many adapters trained together in one pass over one frozen base.

Every pass takes the next optimiser step of every adapter on board. Their dialogues become the rows of one batch, sorted by length and
cut into chunks of a token budget; one forward and backward pass per chunk adds each row's gradient to its own adapter; then every
adapter is clipped, scheduled and stepped by itself. An adapter that finishes leaves, and the longest job that waits takes its slot.

With n_k the response tokens of adapter k in its step, the loss of a pass is sum_k (1 / n_k) sum_(tokens of k) nll, so any way to cut
the rows into chunks gives every adapter exactly the gradient of its own mean loss.
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

from clusterlora.data.prompts import TokenSequence
from clusterlora.errors import TrainingDiverged
from clusterlora.models.base import BaseModel
from clusterlora.models.decoder import PAD_TO
from clusterlora.models.memory import allocation_failures, free_memory_bytes, tokens_at_once
from clusterlora.models.packing import that_fit
from clusterlora.ports import RunLog
from clusterlora.training import checkpoint
from clusterlora.training.backends import Pass, lora_backend, prefix_backend
from clusterlora.training.dropout import Dropout
from clusterlora.training.job import TrainingJob, TrainingResult, batches, learning_rate, out_of_patience, pad_rows
from clusterlora.training.load_balancing import partition_by_load
from clusterlora.training.peft_folder import read_peft_tensors, write_peft_folder, write_prefix_folder
from clusterlora.training.slot_adamw import SlotAdamW, Step
from clusterlora.training.stacked_lora import Rows, StackedLora, targeted_layers
from clusterlora.training.stacked_prefix import StackedPrefix, cache_shape
from clusterlora.training.worker_threads import WorkerThreads

log = logging.getLogger(__name__)

MOST_SLOTS = {"cpu": 32, "cuda": 256}
"""Adapters on board at once; more would not make the products more efficient."""
_SLOT_SHARE = 0.25
"""Share of the free memory that slots may take."""
_ACTIVATION_SHARE = {"cpu": 0.5, "cuda": 0.3}
"""Share of the free memory that the activations of one chunk may take; on a GPU what is recorded has memory of its own beside it."""
_CHECKPOINT_SECONDS = 20.0
"""An epoch ends with a checkpoint when the adapter's last one is older than this: small jobs are done before it would pay."""


@dataclass(slots=True)
class _Seat:
    """A job on board, in a slot."""

    job: TrainingJob
    slot: int
    losses: list[float] = field(default_factory=list[float])
    val_losses: list[float] = field(default_factory=list[float])
    best: Tensor | None = None
    """The slot's row after the epoch with the lowest of the val losses."""
    plan: list[list[int]] = field(default_factory=list[list[int]])
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    def next_batch(self) -> list[int]:
        epoch, within = divmod(len(self.losses), self.job.steps_per_epoch)
        if within == 0:
            self.plan = batches(self.job, epoch)
        return self.plan[within]

    @property
    def ended_epoch(self) -> bool:
        return len(self.losses) % self.job.steps_per_epoch == 0

    @property
    def finished(self) -> bool:
        return len(self.losses) == self.job.total_steps or out_of_patience(self.job.spec.recipe, self.val_losses)


@dataclass(frozen=True, slots=True)
class _Row:
    """One dialogue of one adapter's step, or of its val dialogues. `weight` is 1 / n_k; `place` is its place among them."""

    seat: _Seat
    sequence: TokenSequence
    place: int
    weight: float


def train(
    base: BaseModel, jobs: Sequence[TrainingJob], *, micro_batch: int, run_log: RunLog, checkpointing: bool = False
) -> Iterator[TrainingResult]:
    """Train adapters together and yield each as soon as it is finished.

    A job resumes after its last checkpointed epoch. `micro_batch` below the batch size shrinks the token budget of a chunk in proportion
    and changes nothing else. All jobs are of one kind, share their target modules and batch nothing across adapters.

    Args:
        checkpointing: compute activations again on the way back instead of keeping them: less memory, a third more time.

    Raises:
        OutOfMemory: an allocation failed; the checkpoints stay.
        TrainingDiverged: a loss is not finite. Raised when all other adapters are done.
        BadSettings: the base has no plain Linear layers of these names, or cannot be run with checkpoints.
    """
    with allocation_failures(micro_batch=micro_batch, doing=f"training {jobs[0].spec.name if len(jobs) == 1 else f'{len(jobs)} adapters'}"):
        yield from _Pack(base, jobs, micro_batch=micro_batch, run_log=run_log, checkpointing=checkpointing).run()


class _Pack:
    """The adapters on board, the queue, and the base they share."""

    def __init__(self, base: BaseModel, jobs: Sequence[TrainingJob], *, micro_batch: int, run_log: RunLog, checkpointing: bool) -> None:
        self._base = base
        self._run_log = run_log
        # Longest first: the unified adapter's thousands of steps share their passes with everything else.
        self._queue = deque(sorted(jobs, key=lambda job: -job.total_steps))
        self._rows_per_chunk = micro_batch * MOST_SLOTS[base.model.device.type]
        folders = sorted({job.frozen_adapter for job in jobs if job.frozen_adapter})
        # Frozen adapters under the trained ones, one slot each; slot 0 is none.
        self._frozen_slot = {None: 0} | {folder: slot for slot, folder in enumerate(folders, start=1)}
        self._lora, self._pass = _slots(base, jobs, folders, checkpointing=checkpointing)
        self._optimiser = SlotAdamW(self._lora.parameters, self._lora.gradients)
        self._workers = WorkerThreads(base.model.device)
        # A pass that changes the model while it runs cannot run twice at a time.
        self._n_shares = self._workers.n_workers if self._pass.reentrant else 1
        # Threads share memory and caches.
        at_once = min(_tokens_at_once(base), self._tokens_that_fit(jobs)) // self._n_shares
        self._tokens_per_chunk = max(1, at_once * micro_batch // max(job.spec.recipe.batch_size for job in jobs))
        self._free = list(range(len(self._lora.parameters)))
        self._seats: list[_Seat] = []
        self._diverged: list[_Seat] = []
        self._started = time.monotonic()
        self._n_tokens = self._n_done = 0
        n_features = self._lora.n_features if isinstance(self._lora, StackedLora) else 0
        self._dropout = Dropout(n_features, device=base.model.device, dtype=self._lora.parameters.dtype)

    def _tokens_that_fit(self, jobs: Sequence[TrainingJob]) -> int:
        """Return how many tokens of the longest dialogue's kind the free memory can hold what the way back reads of."""
        longest = max((sequence for job in jobs for sequence in job.sequences), key=lambda sequence: len(sequence.ids))
        per_token, free = self._pass.bytes_per_token(torch.tensor([longest.ids])), free_memory_bytes(self._base.model.device)
        log.info(
            "%d adapters at once; a token needs %.0f KiB on the way back, and %.1f GiB are free",
            len(self._lora.parameters),
            per_token / 2**10,
            free / 2**30,
        )
        return max(1, int(_ACTIVATION_SHARE[self._base.model.device.type] * free / per_token))

    def run(self) -> Iterator[TrainingResult]:
        try:
            while self._board():
                if finished := [seat for seat in self._seats if seat.finished]:
                    for seat in finished:
                        yield self._leave(seat)
                    continue
                self._step(self._forward_backward())
                self._end_epochs()
        finally:
            self._workers.close()
            self._pass.close()
        if self._diverged:
            names = ", ".join(f"{seat.job.spec.name} (learning_rate={seat.job.spec.recipe.learning_rate})" for seat in self._diverged)
            raise TrainingDiverged(f"the loss of {names} is not finite; lower recipe.learning_rate")

    def _board(self) -> bool:
        """Fill the free slots from the queue; return whether anybody is on board."""
        while self._free and self._queue:
            job, slot = self._queue.popleft(), self._free.pop()
            seat = _Seat(job, slot)
            seat.losses = self._begin(seat)
            self._seats.append(seat)
        return bool(self._seats)

    def _begin(self, seat: _Seat) -> list[float]:
        """Set a slot's weights and moments from its checkpoint, the adapter it starts from, or the shared first A; return past losses."""
        lora, job, recipe, optimiser = self._lora, seat.job, seat.job.spec.recipe, self._optimiser
        state = checkpoint.read(job)
        optimiser.begin(seat.slot, n_taken=len(state.losses) if state else 0)
        if state is not None:
            for matrix, tensors in zip(
                (lora.parameters, optimiser.first, optimiser.second),
                (state.weights, state.first_moments, state.second_moments),
                strict=True,
            ):
                lora.write(seat.slot, matrix, tensors)
            seat.val_losses = list(state.val_losses)
            if state.best:
                seat.best = torch.zeros_like(lora.parameters[seat.slot])
                lora.write(0, seat.best[None], state.best)
            log.info("%s resumes after step %d of %d", job.spec.name, len(state.losses), job.total_steps)
            return list(state.losses)
        lora.write(
            seat.slot,
            lora.parameters,
            read_peft_tensors(job.init_from) if job.init_from else lora.initial(rank=recipe.rank, seed=recipe.seed),
        )
        return []

    def _forward_backward(self) -> list[float]:
        """Add every seat's gradient of its own mean loss to its row; return the losses, in the order of the seats."""
        self._lora.gradients.zero_()
        return self._losses([(seat, [seat.job.sequences[i] for i in seat.next_batch()]) for seat in self._seats], learn=True)

    def _losses(self, sequences_of: Sequence[tuple[_Seat, Sequence[TokenSequence]]], *, learn: bool) -> list[float]:
        """Return every seat's mean loss per response token of its dialogues; with `learn`, add its gradient to the seat's row."""
        rows = []
        for seat, sequences in sequences_of:
            n_tokens = sum(sequence.n_response_tokens for sequence in sequences)
            rows += [_Row(seat, sequence, place, 1 / n_tokens) for place, sequence in enumerate(sequences)]
        loss_by_slot = torch.zeros(len(self._lora.parameters), dtype=torch.float64)
        for of_share in self._workers.map(partial(self._share, learn=learn), self._shares(rows)):
            loss_by_slot += of_share
        return [float(loss_by_slot[seat.slot]) for seat, _ in sequences_of]

    def _shares(self, rows: Sequence[_Row]) -> list[list[_Row]]:
        """Return the rows in as many shares as threads can take: an adapter's in one, so that one alone adds to its gradient."""
        tokens = Counter[int]()
        for row in rows:
            tokens[row.seat.slot] += len(row.sequence.ids)
        share_of = {slot: number for number, slots in enumerate(partition_by_load(tokens, self._n_shares)) for slot in slots}
        shares: list[list[_Row]] = [[] for _ in range(self._n_shares)]
        for row in rows:
            shares[share_of[row.seat.slot]].append(row)
        return [share for share in shares if share]

    def _share(self, rows: Sequence[_Row], *, learn: bool) -> Float[Tensor, " k"]:
        """Run rows chunk by chunk; return each slot's loss."""
        loss_by_slot = torch.zeros(len(self._lora.parameters), dtype=torch.float64)
        for chunk in self._chunks(rows):
            loss_by_slot.index_add_(0, torch.tensor([row.seat.slot for row in chunk]), self._chunk(chunk, learn=learn))
        return loss_by_slot

    def _chunks(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Yield the rows, longest first, in chunks within the token budget; one row may exceed it alone."""
        rows = sorted(rows, key=lambda row: -len(row.sequence.ids))
        start = 0
        while start < len(rows):
            lengths = [len(row.sequence.ids) for row in rows[start : start + self._rows_per_chunk]]
            size = that_fit(lengths, self._tokens_per_chunk, self._pass.padding)
            yield rows[start : start + size]
            start += size

    def _chunk(self, rows: Sequence[_Row], *, learn: bool) -> Float[Tensor, " b"]:
        """Run one chunk forward and, to learn, backward; return each row's share of its adapter's loss."""
        ids, predicts = pad_rows([row.sequence for row in rows], pad_id=self._base.pad_id, multiple=PAD_TO)
        frozen_slots = torch.tensor([self._frozen_slot[row.seat.job.frozen_adapter] for row in rows])
        weights = torch.tensor([row.weight for row in rows], dtype=torch.float64)
        return self._pass(ids, predicts, self._rows(rows, drop=learn), frozen_slots, weights, learn=learn).cpu()

    def _rows(self, rows: Sequence[_Row], *, drop: bool) -> Rows:
        recipes = [row.seat.job.spec.recipe for row in rows]
        like = self._lora.parameters
        slot = torch.tensor([row.seat.slot for row in rows], device=like.device)
        scale = torch.tensor([[recipe.alpha / recipe.rank] for recipe in recipes], device=like.device, dtype=like.dtype)
        if not drop:
            return Rows(slot, scale)
        identities = [(row.seat.job.spec.recipe.seed, len(row.seat.losses), row.place) for row in rows]
        masks = self._dropout.masks([recipe.dropout for recipe in recipes], identities)
        return Rows(slot, scale if masks is None else scale * masks)

    def _step(self, losses: Sequence[float]) -> None:
        """Clip, schedule and step every adapter on its own row; set those aside whose loss is not finite."""
        steps = {}
        for seat, loss in zip(list(self._seats), losses, strict=True):
            if not math.isfinite(loss):
                self._set_aside(seat)
                continue
            recipe = seat.job.spec.recipe
            rate = learning_rate(recipe, len(seat.losses), seat.job.total_steps)
            steps[seat.slot] = Step(rate, recipe.weight_decay, recipe.max_grad_norm)
            seat.losses.append(loss)
            self._n_tokens += sum(len(seat.job.sequences[i].ids) for i in seat.plan[(len(seat.losses) - 1) % seat.job.steps_per_epoch])
        self._optimiser.step(steps)
        rate = self._n_tokens / (time.monotonic() - self._started)
        for seat in self._seats:
            self._run_log.advance(1, loss=seat.losses[-1], adapters_done=self._n_done, tokens_per_second=rate)

    def _end_epochs(self) -> None:
        """Look at the val dialogues of those with patience who have seen all of theirs, and write the checkpoints that are due."""
        ended = [seat for seat in self._seats if seat.ended_epoch]
        judged = [seat for seat in ended if seat.job.spec.recipe.patience]
        losses = self._losses([(seat, seat.job.val) for seat in judged], learn=False)
        for seat, loss in zip(judged, losses, strict=True):
            if loss < min(seat.val_losses, default=math.inf):
                seat.best = self._lora.parameters[seat.slot].clone()
            seat.val_losses.append(loss)
            if not math.isfinite(loss):
                self._set_aside(seat)
        for seat in ended:
            if seat in self._seats and time.monotonic() - seat.saved > _CHECKPOINT_SECONDS:
                self._save(seat)

    def _set_aside(self, seat: _Seat) -> None:
        self._diverged.append(seat)
        self._vacate(seat)

    def _save(self, seat: _Seat) -> None:
        lora, rank, optimiser = self._lora, seat.job.spec.recipe.rank, self._optimiser
        weights, *moments = (lora.read(seat.slot, matrix, rank=rank) for matrix in (lora.parameters, optimiser.first, optimiser.second))
        best = {} if seat.best is None else lora.read(0, seat.best[None], rank=rank)
        state = checkpoint.State(weights, moments[0], moments[1], tuple(seat.losses), tuple(seat.val_losses), best)
        checkpoint.write(seat.job, state)
        seat.saved = time.monotonic()

    def _leave(self, seat: _Seat) -> TrainingResult:
        job, recipe = seat.job, seat.job.spec.recipe
        folder = job.scratch / "adapter"
        kept = self._lora.parameters[seat.slot] if seat.best is None else seat.best
        tensors = self._lora.read(0, kept[None], rank=recipe.rank)
        if job.spec.kind == "prefix":
            write_prefix_folder(folder, tensors, cache_shape(self._base.model), base=self._base.name)
        else:
            write_peft_folder(folder, tensors, recipe, base=self._base.name)
        self._vacate(seat)
        self._n_done += 1
        if skipped := job.total_steps - len(seat.losses):
            self._run_log.advance(skipped, adapters_done=self._n_done)
        return TrainingResult(job, folder, tuple(seat.losses), time.monotonic() - seat.started, tuple(seat.val_losses))

    def _vacate(self, seat: _Seat) -> None:
        self._seats.remove(seat)
        self._free.append(seat.slot)
        self._lora.parameters[seat.slot].zero_()


def _tokens_at_once(base: BaseModel) -> int:
    """Return how many tokens one pass takes at the full micro-batch; the widest activation is a gate and an up projection, side by side."""
    layers = [module for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear) and ".layers." in name]
    widest = 2 * max((layer.out_features for layer in layers), default=base.model.config.hidden_size)
    return tokens_at_once(widest, base.model.device, base.model.dtype)


def _slots(
    base: BaseModel, jobs: Sequence[TrainingJob], frozen_adapters: Sequence[Path], *, checkpointing: bool
) -> tuple[StackedLora | StackedPrefix, Pass]:
    """Return as many slots as the jobs need and memory affords, and the pass that trains them; all jobs are of one kind."""
    recipe = jobs[0].spec.recipe
    rank = max(job.spec.recipe.rank for job in jobs)
    if jobs[0].spec.kind == "prefix":
        n_layers, n_heads, head_dim = cache_shape(base.model)
        n_parameters = rank * 2 * n_layers * n_heads * head_dim
        return prefix_backend(base, n_slots=_affordable(base, jobs, n_parameters), n_virtual=rank)
    layers = targeted_layers(base.model, recipe.target_modules).values()
    n_slots = _affordable(base, jobs, rank * sum(layer.in_features + layer.out_features for layer in layers))
    probe = jobs[0].sequences[0].ids[:8]
    return lora_backend(base, recipe, n_slots=n_slots, rank=rank, probe=probe, frozen_adapters=frozen_adapters, checkpointing=checkpointing)


def _affordable(base: BaseModel, jobs: Sequence[TrainingJob], n_parameters: int) -> int:
    """Return how many slots to have: each has parameters, gradients, clipped ones and two moments, in float32."""
    slot_bytes = 4 * 5 * n_parameters
    return max(1, min(len(jobs), MOST_SLOTS[base.model.device.type], int(_SLOT_SHARE * free_memory_bytes(base.model.device) / slot_bytes)))
