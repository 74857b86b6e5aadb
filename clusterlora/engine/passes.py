"""Passes over the frozen base: the dialogues of all active jobs as rows, spread over worker threads and cut to a token budget.

legend   k slot, b row of a chunk

With n_k the response tokens of adapter k in its step, the loss of a pass is sum_k (1 / n_k) sum_(tokens of k) nll, so however the rows are
split into chunks, every adapter gets exactly the gradient of its own mean loss.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from clusterlora.chat.encoder import TokenSequence
from clusterlora.engine.active_job import ActiveJob
from clusterlora.engine.base import BaseModel
from clusterlora.engine.batch import RowSlots, TrainingBatch
from clusterlora.engine.dropout import Dropout
from clusterlora.engine.job import TrainingJob
from clusterlora.engine.kinds import ADAPTER_KINDS
from clusterlora.engine.load_balancing import partition_by_load
from clusterlora.engine.memory import free_memory_bytes, tokens_per_chunk
from clusterlora.engine.packing import n_rows_that_fit
from clusterlora.engine.ragged import RaggedRows
from clusterlora.engine.training_slots import MAX_SLOTS, TrainingSlots
from clusterlora.engine.worker_threads import WorkerThreads
from clusterlora.models.linear_layers import linear_layer

log = logging.getLogger(__name__)

_ACTIVATION_SHARE = {"cpu": 0.5, "cuda": 0.3}
"""Share of the free memory that the activations of one chunk may take; on a GPU, CUDA graphs hold memory of their own besides."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A dialogue of an adapter's step (or of its val split), its index among them, and its loss weight 1 / n_k."""

    active: ActiveJob
    sequence: TokenSequence
    index: int
    weight: float


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows that are computed in one go."""

    rows: Sequence[_Row]
    batch: TrainingBatch


class Passes:
    """Runs the dialogues of active jobs through the base, forward and backward."""

    def __init__(self, base: BaseModel, slots: TrainingSlots, jobs: Sequence[TrainingJob], *, micro_batch: int) -> None:
        """Choose the size of a chunk: a `micro_batch` below the largest batch size of any job reduces it in proportion."""
        self._slots = slots
        self._rows_per_chunk = micro_batch * MAX_SLOTS[base.model.device.type]
        n_tokens = min(_tokens_per_pass(base), self._tokens_that_fit(base, jobs))
        self._workers = WorkerThreads(base.model.device)
        # A backend that modifies the model during a pass cannot run two passes at once.
        self._n_shards = self._workers.n_workers if slots.backend.reentrant else 1
        # Threads share memory and caches.
        n_tokens //= self._n_shards
        self._tokens_per_chunk = max(1, n_tokens * micro_batch // max(job.recipe.batch_size for job in jobs))
        self._plans = _NextStep(base.model.device)
        self._dropout = Dropout(slots.stack.n_features, device=base.model.device, dtype=slots.stack.parameters.dtype)

    def _tokens_that_fit(self, base: BaseModel, jobs: Sequence[TrainingJob]) -> int:
        """Return how many tokens fit in free memory, given the activation bytes per token that the backward pass keeps."""
        longest = max((sequence for job in jobs for sequence in job.sequences), key=lambda sequence: len(sequence.ids))
        per_token, free = self._slots.backend.bytes_per_token(torch.tensor(longest.ids)), free_memory_bytes(base.model.device)
        log.info(
            "%d adapters at once; activations take %.0f KiB per token, %.1f GiB of memory are free",
            len(self._slots),
            per_token / 2**10,
            free / 2**30,
        )
        return max(1, int(_ACTIVATION_SHARE[base.model.device.type] * free / per_token))

    def forward_backward(self, batches: Mapping[ActiveJob, Sequence[TokenSequence]]) -> dict[ActiveJob, float]:
        """Return each job's mean loss per response token of its dialogues, in nats; leave its gradient in the job's slot."""
        self._slots.stack.gradients.zero_()
        return self._losses(self._plans.pop(_steps_of(batches)) or self._plan(batches, backward=True), batches, backward=True)

    def forward(self, batches: Mapping[ActiveJob, Sequence[TokenSequence]]) -> dict[ActiveJob, float]:
        """Return the same losses without dropout; compute no gradient."""
        return self._losses(self._plan(batches, backward=False), batches, backward=False)

    def close(self) -> None:
        """End the worker threads."""
        self._workers.close()
        self._plans.close()

    def _losses(
        self, plan: Sequence[Sequence["_Chunk"]], batches: Mapping[ActiveJob, Sequence[TokenSequence]], *, backward: bool
    ) -> dict[ActiveJob, float]:
        by_shard = self._workers.map(partial(self._run_shard, backward=backward), plan)
        if backward:
            # While a GPU computes this step, the CPU prepares the next one.
            self._plans.begin(batches, partial(self._plan, backward=True))
        loss_by_slot = torch.zeros(len(self._slots), dtype=torch.float64)
        for slots, losses in (shard for shards in by_shard for shard in shards):
            loss_by_slot.index_add_(0, slots, losses.cpu())
        return {active: float(loss_by_slot[active.slot]) for active in batches}

    def _plan(self, batches: Mapping[ActiveJob, Sequence[TokenSequence]], *, backward: bool) -> list[list["_Chunk"]]:
        """Return what to run: the chunks of each shard."""
        rows = []
        for active, sequences in batches.items():
            n_tokens = sum(sequence.n_response_tokens for sequence in sequences)
            rows += [_Row(active, sequence, index, 1 / n_tokens) for index, sequence in enumerate(sequences)]
        return [[self._chunk(chunk, backward=backward) for chunk in self._chunks(shard)] for shard in self._shards(rows)]

    def _shards(self, rows: Sequence[_Row]) -> list[list[_Row]]:
        """Return the rows in one shard per worker, balanced by tokens; a slot's rows share a shard, so one thread adds to its gradient."""
        tokens = Counter[int]()
        for row in rows:
            tokens[row.active.slot] += len(row.sequence.ids)
        shard_by_slot = {slot: number for number, slots in enumerate(partition_by_load(tokens, self._n_shards)) for slot in slots}
        shards: list[list[_Row]] = [[] for _ in range(self._n_shards)]
        for row in rows:
            shards[shard_by_slot[row.active.slot]].append(row)
        return [shard for shard in shards if shard]

    def _chunks(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Yield the rows in chunks within the token budget, longest first where rows are padded; a single row may exceed it."""
        padding, budget = self._slots.backend.padding, self._tokens_per_chunk
        if padding.ragged:
            # The rows of a slot stay together, and chunks are of about one size, so that their shapes recur.
            rows = sorted(rows, key=lambda row: row.active.slot)
            n_tokens = sum(len(row.sequence.ids) for row in rows)
            longest = max(len(row.sequence.ids) for row in rows)
            budget = min(budget, math.ceil(n_tokens / math.ceil(n_tokens / budget)) + longest)
        else:
            rows = sorted(rows, key=lambda row: -len(row.sequence.ids))
        start = 0
        while start < len(rows):
            lengths = [len(row.sequence.ids) for row in rows[start : start + self._rows_per_chunk]]
            size = n_rows_that_fit(lengths, budget, padding)
            yield rows[start : start + size]
            start += size

    def _chunk(self, rows: Sequence[_Row], *, backward: bool) -> "_Chunk":
        slot = torch.tensor([row.active.slot for row in rows])
        frozen_slots = torch.tensor([self._slots.frozen_slot[row.active.job.frozen_adapter] for row in rows])
        weights = torch.tensor([row.weight for row in rows], dtype=torch.float64)
        ragged = RaggedRows.of([row.sequence for row in rows])
        batch = TrainingBatch(ragged, RowSlots(slot, torch.ones(len(rows), 1)), frozen_slots, weights)
        return _Chunk(rows, replace(batch, prepared=self._slots.backend.prepare(batch, backward=backward)))

    def _run_shard(self, chunks: Sequence["_Chunk"], *, backward: bool) -> list[tuple[Tensor, Tensor]]:
        """Run chunks; return for each the slots of its rows and, on the model's device, their shares of their adapters' losses."""
        losses = []
        for chunk in chunks:
            slot = chunk.batch.slots.slot
            batch = replace(chunk.batch, slots=RowSlots(slot, self._input_scale(chunk.rows, dropout=backward)))
            # What a backend returns is valid until its next call.
            losses.append((slot, self._slots.backend(batch, backward=backward).clone()))
        return losses

    def _input_scale(self, rows: Sequence[_Row], *, dropout: bool) -> Float[Tensor, "b feature"]:
        recipes = [row.active.job.recipe for row in rows]
        like = self._slots.stack.parameters
        scale = torch.tensor([[ADAPTER_KINDS[recipe.kind].scale(recipe)] for recipe in recipes], device=like.device, dtype=like.dtype)
        if not dropout:
            return scale
        keys = [(row.active.job.recipe.seed, len(row.active.losses), row.index) for row in rows]
        masks = self._dropout.masks([recipe.dropout for recipe in recipes], keys)
        return scale if masks is None else scale * masks


class _NextStep:
    """The plan of the step after the one that is computed, made by a thread of its own where a GPU computes."""

    def __init__(self, device: torch.device) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="next step") if device.type == "cuda" else None
        self._planned: tuple[object, Future[list[list[_Chunk]]]] | None = None

    def begin(
        self,
        batches: Mapping[ActiveJob, Sequence[TokenSequence]],
        plan: Callable[[Mapping[ActiveJob, Sequence[TokenSequence]]], list[list["_Chunk"]]],
    ) -> None:
        """Plan the step after this one for the jobs that have one; should it be another one in the end, the plan is not used."""
        if self._thread is None:
            return
        following = {active: len(active.losses) + 1 for active in batches if len(active.losses) + 1 < active.job.total_steps}
        if following:
            key = frozenset((id(active), step) for active, step in following.items())
            self._planned = key, self._thread.submit(lambda: plan({active: active.batch(step) for active, step in following.items()}))

    def pop(self, steps: object) -> list[list["_Chunk"]] | None:
        """Return the plan of these steps if it was made."""
        planned, self._planned = self._planned, None
        if planned is None:
            return None
        key, plan = planned
        # Its thread reads the jobs' batches, as the caller would.
        made = plan.result()
        return made if key == steps else None

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()


def _steps_of(batches: Mapping[ActiveJob, Sequence[TokenSequence]]) -> object:
    return frozenset((id(active), len(active.losses)) for active in batches)


def _tokens_per_pass(base: BaseModel) -> int:
    """Return the tokens of one pass at the full micro-batch, where memory affords them.

    The widest activation is a gate and an up projection, concatenated; on a GPU it may be twice as large as elsewhere.
    """
    head = base.model.get_output_embeddings()
    layers = [layer for module in base.model.modules() if module is not head and (layer := linear_layer(module)) is not None]
    widest = 2 * max((layer.d_out for layer in layers), default=base.model.config.hidden_size)
    return tokens_per_chunk(widest, base.model.device, base.model.dtype) * (2 if base.model.device.type == "cuda" else 1)
