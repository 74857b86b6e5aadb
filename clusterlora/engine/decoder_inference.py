"""Answers and reference likelihoods through a written-out decoder, each row of a batch with its own adapters.

legend   l layer, b row, t token, n scored token (whose logits are used), N tokens of all rows, d width, H query heads, G key-value heads,
         g query heads of each of these, e width of a head, V vocabulary

One prefill pass over a dialogue gives the likelihoods of all its references. It also computes the keys and values of every turn's prompt,
because a later prompt begins with the earlier turns and their references. Prefixes common to several dialogues are computed once
(`engine.prefix_sharing`). Decoding a question starts from a copy of its keys and values, with the first token already known. A
finished row is replaced by the next prefilled question, so the decode batch stays full.
Source: Yu et al. 2022, Orca (continuous batching).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from clusterlora.engine.adapter_slots import AdapterSlots, on_segments
from clusterlora.engine.attention import Heads
from clusterlora.engine.cuda_graphs import CudaGraphCache, bucket_size
from clusterlora.engine.families.decoder import PAD_TO, Decoder
from clusterlora.engine.generation import Question, Reply, predicting_tokens
from clusterlora.engine.packing import n_rows_that_fit, pack_batch, single_segment
from clusterlora.engine.prefix_attention import PrefillAttention, segment_attentions
from clusterlora.engine.prefix_sharing import PrefillSequence, prefill_streams
from clusterlora.engine.ragged import RaggedRows
from clusterlora.engine.stacked import Weights


class DecoderInference:
    """The `InferenceBackend` of a decoder with adapters in slots; slot 0 is the base model."""

    def __init__(self, decoder: Decoder, weights: Sequence[Weights], *, end_ids: frozenset[int]) -> None:
        """Load adapters without prefixes into the slots 1, 2, ... Raises BadData if one belongs to another base."""
        self._decoder = decoder
        self._slots = AdapterSlots(decoder, weights)
        self._end_ids = end_ids

    @torch.inference_mode()
    def reply(self, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
        """See `InferenceBackend`."""
        # On a GPU launches dominate a pass, and attention to shared prefixes needs more of them.
        for stream in prefill_streams(questions, batch_size, share=not self._decoder.padding.uniform):
            prefilled_batches = (self._prefill(questions, sequences) for sequences in self._prefill_batches(stream, batch_size))
            if max_new_tokens is None:
                for prefilled in (prefilled for batch in prefilled_batches for prefilled in batch):
                    yield Reply(prefilled.number, (), prefilled.nll)
            else:
                in_stream = [questions[number] for sequence in stream for number in sequence.turns]
                yield from self._decode(in_stream, prefilled_batches, max_new_tokens=max_new_tokens, batch_size=batch_size)

    def close(self) -> None:
        """Do nothing: the model is never modified."""

    def _prefill_batches(self, stream: Sequence[PrefillSequence], batch_size: int) -> Iterator[Sequence[PrefillSequence]]:
        """Yield the sequences of each prefill pass, within the decoder's token budget."""
        start = 0
        while start < len(stream):
            lengths = [sequence.n_own_tokens for sequence in stream[start : start + batch_size]]
            size = n_rows_that_fit(lengths, self._decoder.tokens_per_pass, self._decoder.padding)
            yield stream[start : start + size]
            start += size

    def _decode(
        self, questions: Sequence[Question], prefilled_batches: Iterator[list["_Prefilled"]], *, max_new_tokens: int, batch_size: int
    ) -> Iterator[Reply]:
        longest = max(len(q.prompt) + max(max_new_tokens, len(q.reference)) for q in questions)
        common_slot = questions[0].slot if len({q.slot for q in questions}) == 1 else None
        n_rows = min(batch_size, len(questions))
        decode_batch = _DecodeBatch(self._decoder, self._slots, n_rows=n_rows, n_tokens=_round_up(longest), common_slot=common_slot)
        waiting: deque[_Prefilled] = deque()
        while True:
            while decode_batch.n_free_rows > len(waiting) and (batch := next(prefilled_batches, None)) is not None:
                for prefilled in batch:
                    if prefilled.first_token in self._end_ids:
                        yield Reply(prefilled.number, (), prefilled.nll)
                    else:
                        waiting.append(prefilled)
            decode_batch.admit([waiting.popleft() for _ in range(min(decode_batch.n_free_rows, len(waiting)))])
            if not decode_batch.rows:
                return
            for row in decode_batch.step(self._end_ids, max_new_tokens):
                yield Reply(row.prefilled.number, tuple(row.answer), row.prefilled.nll)

    def _prefill(self, questions: Sequence[Question], sequences: Sequence[PrefillSequence]) -> list["_Prefilled"]:
        """Run one prefill pass, each dialogue and each shared prefix a row; return the questions of all turns, ready to decode."""
        decoder = self._decoder
        prefixes = dict.fromkeys(sequence.prefix for sequence in sequences if sequence.prefix_length)
        longest_first = sorted(sequences, key=lambda sequence: -sequence.n_own_tokens)
        rows = [*(PrefillSequence(ids, slot, ()) for slot, ids in prefixes), *longest_first]
        ragged = _ragged(questions, rows)
        batch = pack_batch(ragged, decoder.padding)
        first_tokens: list[int] = (batch.tokens.position == 0).nonzero()[:, 0].tolist()
        prefix_lengths = torch.tensor([row.prefix_length for row in rows])
        position, predicting_index, real = (
            part.to(decoder.device)
            for part in (batch.tokens.position + prefix_lengths[batch.tokens.row], batch.predicting_index, batch.predicting.real)
        )
        factors = self._slots.of_rows(torch.tensor([row.slot for row in rows], device=decoder.device))
        cos, sin = decoder.cos_sin(position, max(len(row.ids) for row in rows) + decoder.padding.multiple)
        first_token_by_prefix = dict(zip(prefixes, first_tokens, strict=False))
        attentions = segment_attentions(batch.tokens.segments, rows, first_token_by_prefix, decoder.device)
        x, cache = decoder.embed(batch.ids.to(decoder.device), position), list[tuple[Tensor, Tensor]]()
        for block, updates in zip(decoder.blocks, factors, strict=True):
            last = block is decoder.blocks[-1]
            attention = PrefillAttention(attentions, predicting_index if last else None)
            selected = batch.predicting.segments if last else batch.tokens.segments
            x, _ = block.forward(x, on_segments(block, updates, batch.tokens.segments, selected), attention, cos, sin)
            cache.append((attention.keys, attention.values))
        hidden = decoder.norm_out.forward(x)[0][real]
        nll, likeliest = self._score(hidden, ragged.targets.to(decoder.device))
        keys, values = (torch.stack(part) for part in zip(*cache, strict=True))
        prefilled, start = [], len(prefixes)
        for row, first_token in zip(rows[len(prefixes) :], first_tokens[len(prefixes) :], strict=True):
            prefix = (_token_range(first_token_by_prefix[row.prefix], row.prefix_length),) if row.prefix_length else ()
            for number in row.turns:
                question = questions[number]
                n = len(predicting_tokens(question))
                mean = float(nll[start : start + n].mean()) if question.reference else float("nan")
                ranges = (*prefix, _token_range(first_token, len(question.prompt) - row.prefix_length))
                prefilled.append(_Prefilled(number, question, mean, int(likeliest[start]), keys, values, ranges))
                start += n
        return prefilled

    def _score(self, hidden: Float[Tensor, "n d"], targets: Int[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Return each scored token's negative log-likelihood of its target, and its likeliest next token, on the CPU."""
        nlls, likeliest = [], []
        size = self._decoder.logit_rows_per_chunk
        for states, chunk_targets in zip(hidden.split(size), targets.split(size), strict=True):
            logits = self._decoder.logits(states)
            nlls.append(functional.cross_entropy(logits.float(), chunk_targets, reduction="none"))
            likeliest.append(logits.argmax(-1))
        return torch.cat(nlls).cpu(), torch.cat(likeliest).cpu()


@dataclass(frozen=True, slots=True)
class _Prefilled:
    """A prefilled question: its prompt's keys and values are these ranges of the tokens of `keys` and `values` [l N G e]."""

    number: int
    question: Question
    nll: float
    first_token: int
    keys: Float[Tensor, "l N G e"]
    values: Float[Tensor, "l N G e"]
    ranges: tuple[slice, ...]


@dataclass(slots=True)
class _DecodeRow:
    """A question being answered, and the tokens of its answer so far."""

    prefilled: _Prefilled
    answer: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True)
class _StepInput:
    """The last token of every row, its position, and the number of cached tokens to attend to at most."""

    token: Int[Tensor, " b"]
    position: Int[Tensor, " b"]
    cos: Float[Tensor, "R b w"]
    sin: Float[Tensor, "R b w"]
    n_cached: int


class _DecodeBatch:
    """The rows being decoded, contiguous: a finished row is replaced by a new question, or else by the last row."""

    def __init__(self, decoder: Decoder, slots: AdapterSlots, *, n_rows: int, n_tokens: int, common_slot: int | None) -> None:
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
        self.rows: list[_DecodeRow] = []

    @property
    def n_free_rows(self) -> int:
        """Questions that can be admitted."""
        return self._n_rows - len(self.rows)

    def admit(self, prefilled: Sequence[_Prefilled]) -> None:
        """Copy the keys and values of these questions into the next free rows."""
        start = len(self.rows)
        for row, question in enumerate(prefilled, start=start):
            for cache, computed in ((self._keys, question.keys), (self._values, question.values)):
                end = 0
                for tokens in question.ranges:
                    begin, end = end, end + tokens.stop - tokens.start
                    cache[:, row, :, begin:end] = computed[:, tokens].transpose(1, 2)
            self.rows.append(_DecodeRow(question, [question.first_token]))
        if prefilled and not self._has_common_slot:
            self._slots.fill(self._factors, start, [question.question.slot for question in prefilled])

    def step(self, end_ids: frozenset[int], max_new_tokens: int) -> list[_DecodeRow]:
        """Decode one token of every row; evict and return the finished rows."""
        finished = [row for row, state in enumerate(self.rows) if len(state.answer) == max_new_tokens]
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
        """Return the likeliest next token of every row."""
        decoder, n, cache_length = self._decoder, len(self.rows), self._keys.shape[3]
        positions = [len(row.prefilled.question.prompt) + len(row.answer) - 1 for row in self.rows]
        tokens = [row.answer[-1] for row in self.rows]
        n_cached = max(positions) + 1
        if decoder.padding.uniform:
            # Rounded up, with rows whose tokens are discarded, so that shapes recur.
            n, n_cached = min(bucket_size(n), self._n_rows), min(_round_up(n_cached, 4 * PAD_TO), cache_length)
            tokens, positions = ([*numbers, *[0] * (n - len(numbers))] for numbers in (tokens, positions))
        token, position = torch.tensor([tokens, positions]).to(decoder.device).unbind(0)
        step_input = _StepInput(token, position, *decoder.cos_sin(position, cache_length), n_cached)
        return self._graphs(self._run, step_input)[: len(self.rows)].tolist()

    @torch.inference_mode()
    def _run(self, step: _StepInput) -> Int[Tensor, " b"]:
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
        return decoder.logits(decoder.norm_out.forward(x)[0]).argmax(-1)


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


def _ragged(questions: Sequence[Question], rows: Sequence[PrefillSequence]) -> RaggedRows:
    """Return the rows' own tokens. The last one of a shared prefix predicts, too, and is ignored: `pack_batch` wants one in every row."""
    ranges = [
        [predicting_tokens(questions[number], start=row.prefix_length) for number in row.turns] or [range(len(row.ids) - 1, len(row.ids))]
        for row in rows
    ]
    return RaggedRows.with_predictions_in([row.ids[row.prefix_length :] for row in rows], ranges)


def _token_range(start: int, n: int) -> slice:
    return slice(start, start + n)


def _round_up(n: int, multiple: int = PAD_TO) -> int:
    return -(-n // multiple) * multiple
