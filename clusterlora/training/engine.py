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
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from clusterlora.errors import TrainingDiverged
from clusterlora.models.base import BaseModel
from clusterlora.models.memory import allocation_failures, free_memory_bytes
from clusterlora.models.stacked import StackedModel, logits_only_at, read_weights
from clusterlora.ports import RunLog
from clusterlora.training import checkpoint
from clusterlora.training.dropout import DropoutTape, Tape
from clusterlora.training.job import TrainingJob, TrainingResult, batches, learning_rate, pad_rows
from clusterlora.training.peft_folder import read_peft_tensors, write_peft_folder, write_prefix_folder
from clusterlora.training.stacked_lora import Rows, StackedLora, targeted_layers
from clusterlora.training.stacked_prefix import StackedPrefix, cache_shape

log = logging.getLogger(__name__)

TOKENS_PER_CHUNK = 4096
"""Tokens, padding included, of one forward pass at the full micro-batch: about what fits a CPU's caches; a GPU takes more."""
MOST_SLOTS = 32
"""Adapters on board at once; more would not make the products more efficient."""
_SLOT_SHARE = 0.25
"""Share of the free memory that slots may take; the rest is for activations."""
_CHECKPOINT_SECONDS = 20.0
"""An epoch ends with a checkpoint when the adapter's last one is older than this: small jobs are done before it would pay."""


@dataclass(slots=True)
class _Seat:
    """A job on board, in a slot."""

    job: TrainingJob
    slot: int
    optimiser: torch.optim.AdamW
    losses: list[float] = field(default_factory=list[float])
    plan: list[list[int]] = field(default_factory=list[list[int]])
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    def next_batch(self) -> list[int]:
        epoch, within = divmod(len(self.losses), self.job.steps_per_epoch)
        if within == 0:
            self.plan = batches(self.job, epoch)
        return self.plan[within]


@dataclass(frozen=True, slots=True)
class _Row:
    """One dialogue of one adapter's step. `weight` is 1 / n_k; `place` is the dialogue's place in the step."""

    seat: _Seat
    sequence: int
    place: int
    weight: float

    @property
    def length(self) -> int:
        return len(self.seat.job.sequences[self.sequence].ids)


def train(base: BaseModel, jobs: Sequence[TrainingJob], *, micro_batch: int, run_log: RunLog) -> Iterator[TrainingResult]:
    """Train adapters together and yield each as soon as it is finished.

    A job resumes after its last checkpointed epoch. `micro_batch` below the batch size shrinks the token budget of a chunk in proportion
    and changes nothing else. All jobs are of one kind, share their target modules and batch nothing across adapters.

    Raises:
        OutOfMemory: an allocation failed; the checkpoints stay.
        TrainingDiverged: a loss is not finite. Raised when all other adapters are done.
        BadSettings: the base has no plain Linear layers of these names.
    """
    with allocation_failures(micro_batch=micro_batch, doing=f"training {jobs[0].spec.name if len(jobs) == 1 else f'{len(jobs)} adapters'}"):
        yield from _Pack(base, jobs, micro_batch=micro_batch, run_log=run_log).run()


class _Pack:
    """The adapters on board, the queue, and the base they share."""

    def __init__(self, base: BaseModel, jobs: Sequence[TrainingJob], *, micro_batch: int, run_log: RunLog) -> None:
        self._base = base
        self._run_log = run_log
        # Longest first: the unified adapter's thousands of steps share their passes with everything else.
        self._queue = deque(sorted(jobs, key=lambda job: -job.total_steps))
        self._tokens_per_chunk = max(1, TOKENS_PER_CHUNK * micro_batch // max(job.spec.recipe.batch_size for job in jobs))
        self._rows_per_chunk = micro_batch * MOST_SLOTS
        self._lora = _slots(base, jobs)
        self._underlays = self._load_underlays(jobs)
        self._free = list(range(len(self._lora.parameters)))
        self._seats: list[_Seat] = []
        self._diverged: list[_Seat] = []
        self._tapes: dict[float, Tape] = {}

    def run(self) -> Iterator[TrainingResult]:
        try:
            while self._board():
                if finished := [seat for seat in self._seats if len(seat.losses) == seat.job.total_steps]:
                    for seat in finished:
                        yield self._leave(seat)
                    continue
                losses = self._forward_backward()
                for seat, loss in zip(list(self._seats), losses, strict=True):
                    self._step(seat, loss)
        finally:
            self._lora.close()
            self._underlays.close()
        if self._diverged:
            names = ", ".join(f"{seat.job.spec.name} (learning_rate={seat.job.spec.recipe.learning_rate})" for seat in self._diverged)
            raise TrainingDiverged(f"the loss of {names} is not finite; lower recipe.learning_rate")

    def _board(self) -> bool:
        """Fill the free slots from the queue; return whether anybody is on board."""
        while self._free and self._queue:
            job, slot = self._queue.popleft(), self._free.pop()
            recipe = job.spec.recipe
            parameter = torch.nn.Parameter(self._lora.parameters[slot])  # a view: stepping it changes the slot's row
            optimiser = torch.optim.AdamW([parameter], lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
            seat = _Seat(job, slot, optimiser)
            seat.losses = self._begin(seat, parameter)
            self._seats.append(seat)
        return bool(self._seats)

    def _begin(self, seat: _Seat, parameter: Tensor) -> list[float]:
        """Set a slot's weights and moments: from its checkpoint, else from its init, else from the shared first A; return past losses."""
        lora, job, recipe = self._lora, seat.job, seat.job.spec.recipe
        state = checkpoint.read(job)
        if state is not None:
            moments = [torch.zeros_like(lora.parameters) for _ in range(2)]
            for matrix, tensors in zip(
                (lora.parameters, *moments), (state.weights, state.first_moments, state.second_moments), strict=True
            ):
                lora.write(seat.slot, matrix, tensors)
            first, second = (matrix[seat.slot].clone() for matrix in moments)
            seat.optimiser.state[parameter] = {"step": torch.tensor(float(len(state.losses))), "exp_avg": first, "exp_avg_sq": second}
            log.info("%s resumes after step %d of %d", job.spec.name, len(state.losses), job.total_steps)
            return list(state.losses)
        lora.write(
            seat.slot, lora.parameters, read_peft_tensors(job.init) if job.init else lora.initial(rank=recipe.rank, seed=recipe.seed)
        )
        return []

    def _forward_backward(self) -> list[float]:
        """Add every seat's gradient of its own mean loss to its row; return the losses, in the order of the seats."""
        self._lora.gradients.zero_()
        loss_by_slot = torch.zeros(self._lora.parameters.shape[0], dtype=torch.float64)
        for chunk in self._chunks():
            loss_by_slot.index_add_(0, torch.tensor([row.seat.slot for row in chunk]), self._chunk(chunk))
        return [float(loss_by_slot[seat.slot]) for seat in self._seats]

    def _chunks(self) -> Iterator[list[_Row]]:
        """Yield this pass's rows, longest first, in chunks within the token budget; one row may exceed it alone."""
        rows = []
        for seat in self._seats:
            batch = seat.next_batch()
            n_tokens = sum(seat.job.sequences[i].n_response_tokens for i in batch)
            rows += [_Row(seat, i, place, 1 / n_tokens) for place, i in enumerate(batch)]
        rows.sort(key=lambda row: -row.length)
        start = 0
        while start < len(rows):
            size = max(1, min(self._rows_per_chunk, self._tokens_per_chunk // rows[start].length))
            yield rows[start : start + size]
            start += size

    def _chunk(self, rows: Sequence[_Row]) -> Float[Tensor, " b"]:
        """Run one chunk forward and backward; return each row's share of its adapter's loss."""
        model = self._base.model
        sequences = [row.seat.job.sequences[row.sequence] for row in rows]
        ids, predicts = (part.to(model.device) for part in pad_rows(sequences, pad_id=self._base.pad_id))
        slot = torch.tensor([row.seat.slot for row in rows], device=model.device)
        # Right padding under causal attention needs no mask: no real token sees a padded one.
        with self._lora.rows(self._rows(rows, slot)), self._underlays.rows(self._underlay_slots(rows)), logits_only_at(model, predicts):
            logits = model(input_ids=ids, use_cache=False).logits
        nll = functional.cross_entropy(logits.to(self._lora.parameters.dtype), ids[:, 1:][predicts[:, :-1]], reduction="none")
        row_of_token = predicts.nonzero()[:, 0]
        weights = torch.tensor([row.weight for row in rows], device=model.device, dtype=nll.dtype)
        share = nll * weights[row_of_token]
        share.sum().backward()
        return torch.zeros(len(rows), dtype=torch.float64).index_add_(0, row_of_token.cpu(), share.detach().double().cpu())

    def _rows(self, rows: Sequence[_Row], slot: Tensor) -> Rows:
        recipes = [row.seat.job.spec.recipe for row in rows]
        scale = torch.tensor([recipe.alpha / recipe.rank for recipe in recipes], device=slot.device, dtype=self._lora.parameters.dtype)
        dropout = None
        if any(recipe.dropout for recipe in recipes):
            tapes = [self._tape(recipe.dropout) if recipe.dropout else None for recipe in recipes]
            dropout = DropoutTape(tapes, [(row.seat.job.spec.recipe.seed, len(row.seat.losses), row.place) for row in rows])
        return Rows(slot, scale.view(-1, 1, 1), dropout)

    def _tape(self, probability: float) -> Tape:
        if probability not in self._tapes:
            self._tapes[probability] = Tape(probability, device=self._base.model.device, dtype=self._base.model.dtype)
        return self._tapes[probability]

    def _step(self, seat: _Seat, loss: float) -> None:
        """Clip, schedule and step one adapter on its own row; set it aside when its loss is not finite."""
        if not math.isfinite(loss):
            self._diverged.append(seat)
            self._vacate(seat)
            return
        recipe, gradient = seat.job.spec.recipe, self._lora.gradients[seat.slot]
        (parameter,) = seat.optimiser.param_groups[0]["params"]
        parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_([parameter], recipe.max_grad_norm)
        seat.optimiser.param_groups[0]["lr"] = learning_rate(recipe, len(seat.losses), seat.job.total_steps)
        seat.optimiser.step()
        seat.losses.append(loss)
        self._run_log.advance(1, loss=loss)
        ended_epoch = len(seat.losses) % seat.job.steps_per_epoch == 0
        if ended_epoch and time.monotonic() - seat.saved > _CHECKPOINT_SECONDS:
            self._save(seat)

    def _save(self, seat: _Seat) -> None:
        (parameter,) = seat.optimiser.param_groups[0]["params"]
        state, lora, rank = seat.optimiser.state[parameter], self._lora, seat.job.spec.recipe.rank
        moments = []
        for name in ("exp_avg", "exp_avg_sq"):
            matrix = torch.zeros_like(lora.parameters)
            matrix[seat.slot] = state[name]
            moments.append(lora.read(seat.slot, matrix, rank=rank))
        weights = lora.read(seat.slot, lora.parameters, rank=rank)
        checkpoint.write(seat.job, checkpoint.State(weights, moments[0], moments[1], tuple(seat.losses)))
        seat.saved = time.monotonic()

    def _leave(self, seat: _Seat) -> TrainingResult:
        job, recipe = seat.job, seat.job.spec.recipe
        folder = job.scratch / "adapter"
        tensors = self._lora.read(seat.slot, self._lora.parameters, rank=recipe.rank)
        if job.spec.kind == "prefix":
            write_prefix_folder(folder, tensors, cache_shape(self._base.model), base=self._base.name)
        else:
            write_peft_folder(folder, tensors, recipe, base=self._base.name)
        self._vacate(seat)
        tokens = recipe.epochs * sum(len(sequence.ids) for sequence in job.sequences)
        return TrainingResult(job, folder, tuple(seat.losses), tokens, time.monotonic() - seat.started)

    def _vacate(self, seat: _Seat) -> None:
        self._seats.remove(seat)
        self._free.append(seat.slot)
        self._lora.parameters[seat.slot].zero_()

    def _load_underlays(self, jobs: Sequence[TrainingJob]) -> StackedModel:
        """Return the frozen adapters under the trained ones, one slot each; slot 0 is none."""
        folders = sorted({job.underlay for job in jobs if job.underlay})
        stacked = StackedModel(self._base.model)
        stacked.load([read_weights(folder) for folder in folders])
        self._underlay_slot = {None: 0} | {folder: slot for slot, folder in enumerate(folders, start=1)}
        return stacked

    def _underlay_slots(self, rows: Sequence[_Row]) -> Tensor:
        return torch.tensor([self._underlay_slot[row.seat.job.underlay] for row in rows], device=self._base.model.device)


def _slots(base: BaseModel, jobs: Sequence[TrainingJob]) -> StackedLora | StackedPrefix:
    """Return as many slots as the jobs need and memory affords; all jobs are of one kind."""
    recipe = jobs[0].spec.recipe
    rank = max(job.spec.recipe.rank for job in jobs)
    if jobs[0].spec.kind == "prefix":
        n_layers, n_heads, head_dim = cache_shape(base.model)
        n_parameters = rank * 2 * n_layers * n_heads * head_dim
        return StackedPrefix(base.model, n_slots=_affordable(base, jobs, n_parameters), n_virtual=rank)
    layers = targeted_layers(base.model, recipe.target_modules).values()
    n_parameters = rank * sum(layer.in_features + layer.out_features for layer in layers)
    probe = torch.tensor([jobs[0].sequences[0].ids[:8]], device=base.model.device)
    return StackedLora(base.model, recipe.target_modules, n_slots=_affordable(base, jobs, n_parameters), rank=rank, probe=probe)


def _affordable(base: BaseModel, jobs: Sequence[TrainingJob], n_parameters: int) -> int:
    """Return how many slots to have: each has parameters, gradients and two moments, in float32."""
    slot_bytes = 4 * 4 * n_parameters
    return max(1, min(len(jobs), MOST_SLOTS, int(_SLOT_SHARE * free_memory_bytes(base.model.device) / slot_bytes)))
