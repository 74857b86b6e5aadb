"""The decode batch: rows that a written-out decoder continues together, each with the factors of its own slot.

legend   l layer, b row, t token, N tokens of all rows, d width, H query heads, G key-value heads, e width of a head, V vocabulary,
         R tables of rotary embeddings, w width of a table

A finished row is replaced by the next prefilled question, so the batch stays full.
Source: Yu et al. 2022, Orca (continuous batching).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clusterlora.engine.adapter_slots import AdapterSlots, on_segments
from clusterlora.engine.attention import Heads
from clusterlora.engine.cuda_graphs import CudaGraphCache, bucket_size
from clusterlora.engine.families.decoder import PAD_TO, Decoder
from clusterlora.engine.generation import Question
from clusterlora.engine.packing import single_segment
from clusterlora.engine.sampling import Sampler


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prefilled question: its prompt's keys and values are these ranges of the tokens of `keys` and `values` [l N G e].

    `sampler` draws its further tokens; None: they are the likeliest.
    """

    number: int
    question: Question
    nll: float
    first_token: int
    keys: Float[Tensor, "l N G e"]
    values: Float[Tensor, "l N G e"]
    ranges: tuple[slice, ...]
    sampler: Sampler | None


@dataclass(slots=True)
class DecodeRow:
    """A question being answered with at most `limit` tokens, the caller's number for it, and the tokens of its answer so far."""

    prefilled: Prefilled
    number: int
    limit: int
    answer: list[int]


@dataclass(frozen=True, slots=True)
class _StepInput:
    """The last token of every row, its position, and the number of cached tokens to attend to at most."""

    token: Int[Tensor, " b"]
    position: Int[Tensor, " b"]
    cos: Float[Tensor, "R b w"]
    sin: Float[Tensor, "R b w"]
    n_cached: int


class DecodeBatch:
    """The rows being decoded, contiguous: a finished row is replaced by a new question, or else by the last row."""

    def __init__(self, decoder: Decoder, slots: AdapterSlots, *, n_rows: int, n_tokens: int, common_slot: int | None = None) -> None:
        """Allocate a key-value cache of `n_rows` rows of `n_tokens` tokens; `common_slot` is the slot of all rows if they have one."""
        self._decoder = decoder
        self._slots = slots
        self._has_common_slot = common_slot is not None
        shape = (len(decoder.blocks), n_rows, decoder.heads.n_kv, n_tokens, decoder.heads.dim)
        self._keys = torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
        self._values = torch.zeros_like(self._keys)
        if common_slot is None:
            self._factors = slots.zeros(n_rows)
        else:
            self._factors = slots.of_rows(torch.full((1,), common_slot, device=decoder.device))
        self._n_rows = n_rows
        self._graphs = CudaGraphCache[_StepInput](decoder.device, enabled=not decoder.is_quantised)
        self._logit_graphs = CudaGraphCache[_StepInput](decoder.device, enabled=not decoder.is_quantised)
        self.rows: list[DecodeRow] = []

    @property
    def n_free_rows(self) -> int:
        """Questions that can be admitted."""
        return self._n_rows - len(self.rows)

    def admit(self, rows: Sequence[DecodeRow]) -> None:
        """Copy the keys and values of these questions into the next free rows."""
        start = len(self.rows)
        for row, state in enumerate(rows, start=start):
            question = state.prefilled
            for cache, computed in ((self._keys, question.keys), (self._values, question.values)):
                end = 0
                for tokens in question.ranges:
                    begin, end = end, end + tokens.stop - tokens.start
                    cache[:, row, :, begin:end] = computed[:, tokens].transpose(1, 2)
            self.rows.append(state)
        if rows and not self._has_common_slot:
            self._slots.fill(self._factors, start, [row.prefilled.question.slot for row in rows])

    def step(self, end_ids: frozenset[int]) -> list[DecodeRow]:
        """Decode one token of every row; evict and return the finished rows."""
        finished = [row for row, state in enumerate(self.rows) if len(state.answer) >= state.limit]
        if not finished:
            for row, token in enumerate(self._next_tokens()):
                if token in end_ids:
                    finished.append(row)
                else:
                    self.rows[row].answer.append(token)
        evicted = [self.rows[row] for row in finished]
        for row in reversed(finished):
            self._evict(row)
        return evicted

    def cancel(self, number: int) -> None:
        """Evict the row of a question, if it has one."""
        for row in [row for row, state in enumerate(self.rows) if state.number == number]:
            self._evict(row)

    def _evict(self, row: int) -> None:
        """Replace a row by the last one."""
        last = len(self.rows) - 1
        if row != last:
            self.rows[row] = self.rows[last]
            self._keys[:, row], self._values[:, row] = self._keys[:, last], self._values[:, last]
            for updates in self._factors if not self._has_common_slot else ():
                for factor in (factor for update in updates.values() for factor in update.factors):
                    factor[row] = factor[last]
        self.rows.pop()

    def _next_tokens(self) -> list[int]:
        """Return the next token of every row: the likeliest, or one that the row's sampler draws."""
        decoder, n, cache_length = self._decoder, len(self.rows), self._keys.shape[3]
        positions = [len(row.prefilled.question.prompt) + len(row.answer) - 1 for row in self.rows]
        tokens = [row.answer[-1] for row in self.rows]
        n_cached = max(positions) + 1
        if decoder.padding.uniform:
            # Rounded up, with rows whose tokens are discarded, so that shapes recur.
            n, n_cached = min(bucket_size(n), self._n_rows), min(round_up(n_cached, 4 * PAD_TO), cache_length)
            tokens, positions = ([*numbers, *[0] * (n - len(numbers))] for numbers in (tokens, positions))
        token, position = torch.tensor([tokens, positions]).to(decoder.device).unbind(0)
        step_input = _StepInput(token, position, *decoder.cos_sin(position, cache_length), n_cached)
        samplers = [row.prefilled.sampler for row in self.rows]
        if not any(samplers):
            return self._graphs(self._likeliest, step_input)[: len(self.rows)].tolist()
        logits = self._logit_graphs(self._logits, step_input)[: len(self.rows)]
        likeliest: list[int] = logits.argmax(-1).tolist()
        return [sampler.draw(logits[row]) if sampler else likeliest[row] for row, sampler in enumerate(samplers)]

    @torch.inference_mode()
    def _likeliest(self, step: _StepInput) -> Int[Tensor, " b"]:
        return self._logits(step).argmax(-1)

    @torch.inference_mode()
    def _logits(self, step: _StepInput) -> Float[Tensor, "b V"]:
        decoder, n, n_cached = self._decoder, len(step.token), step.n_cached
        x = decoder.embed(step.token, step.position)
        cached = torch.arange(n_cached, device=decoder.device)
        age = step.position[:, None] - cached
        rows, segments = torch.arange(n, device=decoder.device), single_segment(n, 1)
        bias_by_window = {window: _bias(age, window) for window in {block.heads.window for block in decoder.blocks}}
        for number, (block, updates) in enumerate(zip(decoder.blocks, self._factors, strict=True)):
            if not self._has_common_slot:
                updates = {name: update.first(n) for name, update in updates.items()}
            keys, values = self._keys[number, :n, :, :n_cached], self._values[number, :n, :, :n_cached]
            attention = _CachedAttention(keys, values, rows, step.position, bias_by_window[block.heads.window])
            x, _ = block.forward(x, on_segments(block, updates, segments, segments), attention, step.cos, step.sin)
        return decoder.logits(decoder.norm_out.forward(x)[0])


@dataclass(frozen=True, slots=True)
class _CachedAttention:
    """The `Attention` of one block in a decoding step: over the cache, to which it adds the step's keys and values."""

    keys: Float[Tensor, "b G t e"]
    values: Float[Tensor, "b G t e"]
    rows: Int[Tensor, " b"]
    position: Int[Tensor, " b"]
    bias: Float[Tensor, "b 1 1 t"]

    def attend(
        self, heads: Heads, q: Float[Tensor, "b H e"], k: Float[Tensor, "b G e"], v: Float[Tensor, "b G e"]
    ) -> tuple[Float[Tensor, "b He"], None]:
        """See `Attention`."""
        self.keys[self.rows, :, self.position], self.values[self.rows, :, self.position] = k, v
        return heads.attend_cached(q, self.keys, self.values, self.bias), None

    def select(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """See `Attention`."""
        return x


def _bias(age: Int[Tensor, "b t"], window: int | None) -> Float[Tensor, "b 1 1 t"]:
    """Return -inf for cached tokens that are later than the row's or, with a window, at least that old; 0 for the others."""
    hidden = age < 0 if window is None else (age < 0) | (age >= window)
    return torch.zeros(age.shape, device=age.device).masked_fill_(hidden, float("-inf"))[:, None, None]


def round_up(n: int, multiple: int = PAD_TO) -> int:
    """Return the smallest multiple that is at least n."""
    return -(-n // multiple) * multiple
