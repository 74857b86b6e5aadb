"""Answers and reference likelihoods through a written-out decoder: every row of a batch with its own composition of adapters.

legend   l layer, b row, t token, N tokens of all rows, d width, G key-value heads, g query heads of each, e width of a head, V vocabulary

One pass over a whole dialogue reads off the likelihood of all its references, and leaves in its keys and values the beginning of every
turn's prompt: an earlier turn with its reference is how the later prompt begins. What several dialogues begin with is read once
(`evaluation.prefix_sharing`). So a question starts its answer from a copy of what the pass computed, its first token already chosen. Rows
that
end make room for the next question: the batch stays full.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from clusterlora.evaluation.generate import Question, Reply
from clusterlora.evaluation.prefix_attention import attention_of
from clusterlora.evaluation.prefix_sharing import Reading, streams
from clusterlora.models.adapter_slots import AdapterSlots, adapted
from clusterlora.models.cuda_graphs import CudaGraphCache, bucket_size
from clusterlora.models.decoder import PAD_TO, Block, Decoder
from clusterlora.models.low_rank_update import Update
from clusterlora.models.packing import Run, pack_batch, that_fit, whole
from clusterlora.models.stacked import Weights


class DecoderInference:
    """Slots of adapters on a decoder, ready to answer; slot 0 is the base model."""

    def __init__(self, decoder: Decoder, weights: Sequence[Weights], *, end_ids: frozenset[int], pad_id: int) -> None:
        """Put adapters into the slots 1, 2, ...; none of them has a prefix. Raises BadData when one belongs to another base."""
        self._decoder = decoder
        self._slots = AdapterSlots(decoder, weights)
        self._end_ids = end_ids
        self._pad_id = pad_id

    @torch.inference_mode()
    def reply(self, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
        """Yield every question's greedy answer and likelihood, in no particular order; only likelihoods when no tokens are asked for."""
        # On a GPU a pass spends its time on starting kernels, and rows that carry on others need more of them.
        for stream in streams(questions, batch_size, share=not self._decoder.padding.alike):
            passes = (self._pass(questions, readings) for readings in self._batches(stream, batch_size))
            if max_new_tokens is None:
                for begun in (one for together in passes for one in together):
                    yield Reply(begun.number, (), begun.nll)
            else:
                asked = [questions[number] for reading in stream for number in reading.together]
                yield from self._generate(asked, passes, max_new_tokens=max_new_tokens, batch_size=batch_size)

    def close(self) -> None:
        """The model itself was never touched."""

    def _batches(self, stream: Sequence[Reading], batch_size: int) -> Iterator[Sequence[Reading]]:
        """Yield what to read in one pass: so much as runs best at once."""
        start = 0
        while start < len(stream):
            lengths = [reading.n_own for reading in stream[start : start + batch_size]]
            size = that_fit(lengths, self._decoder.tokens_at_once, self._decoder.padding)
            yield stream[start : start + size]
            start += size

    def _generate(
        self, asked: Sequence[Question], passes: Iterator[list["_Begun"]], *, max_new_tokens: int, batch_size: int
    ) -> Iterator[Reply]:
        longest = max(len(q.prompt) + max(max_new_tokens, len(q.reference)) for q in asked)
        same_slot = asked[0].slot if len({q.slot for q in asked}) == 1 else None
        desk = _Desk(self._decoder, self._slots, n_rows=min(batch_size, len(asked)), n_tokens=_round_up(longest), slot=same_slot)
        waiting: deque[_Begun] = deque()
        while True:
            while desk.room > len(waiting) and (together := next(passes, None)) is not None:
                for begun in together:
                    if begun.first in self._end_ids:
                        yield Reply(begun.number, (), begun.nll)
                    else:
                        waiting.append(begun)
            desk.seat([waiting.popleft() for _ in range(min(desk.room, len(waiting)))])
            if not desk.rows:
                return
            for row in desk.step(self._end_ids, max_new_tokens):
                yield Reply(row.begun.number, tuple(row.answer), row.begun.nll)

    def _pass(self, questions: Sequence[Question], readings: Sequence[Reading]) -> list["_Begun"]:
        """Read dialogues, each a row; return every question's likelihood, first token and where its prompt's keys and values are."""
        decoder = self._decoder
        beginnings = dict.fromkeys(reading.beginning for reading in readings if reading.begin)
        rows = [*(Reading(ids, slot, ()) for slot, ids in beginnings), *sorted(readings, key=lambda reading: -reading.n_own)]
        ids, predicts = _laid_out(questions, rows, pad_id=self._pad_id)
        batch = pack_batch(ids, predicts, decoder.padding)
        starts: list[int] = (batch.tokens.place == 0).nonzero()[:, 0].tolist()
        begins = torch.tensor([row.begin for row in rows])
        place, chosen, real = (
            part.to(decoder.device) for part in (batch.tokens.place + begins[batch.tokens.row], batch.chosen, batch.predicting.real)
        )
        factors = self._slots.of_rows(torch.tensor([row.slot for row in rows], device=decoder.device))
        cos, sin = decoder.turns(place, max(len(row.ids) for row in rows) + decoder.padding.multiple)
        start_of = dict(zip(beginnings, starts, strict=False))
        attention = attention_of(batch.tokens.runs, rows, start_of, decoder.device)
        x, runs = functional.embedding(batch.ids.to(decoder.device), decoder.embedding), batch.tokens.runs
        cache: list[tuple[Tensor, Tensor]] = []
        for layer, block in enumerate(decoder.blocks):
            own = factors[4 * layer : 4 * layer + 4]
            heads = decoder.heads(adapted(block.qkv, decoder.norm(x, block.norm_in)[0], own[0], runs), cos, sin)
            cache.append(heads[1:])
            found = torch.empty_like(heads[0]).flatten(1)
            for part in attention:
                part.run.of(found).copy_(part.attend(decoder, *heads))
            if layer == len(decoder.blocks) - 1:
                found, x, runs = found[chosen], x[chosen], batch.predicting.runs
            x = after_attention(decoder, block, x, found, own, runs)
        hidden = decoder.norm(x, decoder.norm_out)[0][real]
        nll, best = self._read(hidden, ids.roll(-1, 1)[predicts].to(decoder.device))
        keys, values = (torch.stack(part) for part in zip(*cache, strict=True))
        begun, start = [], len(beginnings)
        for row, first_token in zip(rows[len(beginnings) :], starts[len(beginnings) :], strict=True):
            before = (_tokens(start_of[row.beginning], row.begin),) if row.begin else ()
            for number in row.together:
                question = questions[number]
                n = _n_predicted(question)
                mean = float(nll[start : start + n].mean()) if question.reference else float("nan")
                parts = (*before, _tokens(first_token, len(question.prompt) - row.begin))
                begun.append(_Begun(number, question, mean, int(best[start]), keys, values, parts))
                start += n
        return begun

    def _read(self, hidden: Float[Tensor, "n d"], targets: Tensor) -> tuple[Float[Tensor, " n"], Tensor]:
        """Return each place's negative log-likelihood of its target, on the CPU, and its likeliest token."""
        found = []
        size = self._decoder.rows_of_logits
        for states, wanted in zip(hidden.split(size), targets.split(size), strict=True):
            logits = functional.linear(states, self._decoder.head)
            found.append((functional.cross_entropy(logits.float(), wanted, reduction="none"), logits.argmax(-1)))
        nll, best = (torch.cat(part).cpu() for part in zip(*found, strict=True))
        return nll, best


@dataclass(frozen=True, slots=True)
class _Begun:
    """A question whose prompt has been read: `keys` and `values` [l N G e] hold it in these parts of their tokens."""

    number: int
    question: Question
    nll: float
    first: int
    keys: Tensor
    values: Tensor
    parts: tuple[slice, ...]


@dataclass(slots=True)
class _Row:
    """A question being answered."""

    begun: _Begun
    answer: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True)
class _Given:
    """The last token of every row, the turns of its place, and which of the first `reach` places it sees."""

    token: Int[Tensor, " b"]
    place: Int[Tensor, " b"]
    cos: Float[Tensor, "b e"]
    sin: Float[Tensor, "b e"]
    reach: int


class _Desk:
    """The rows being answered, one next to another; those that end are replaced, and when nobody waits the last takes their place."""

    def __init__(self, decoder: Decoder, slots: AdapterSlots, *, n_rows: int, n_tokens: int, slot: int | None) -> None:
        """Make room for so many rows of so many tokens; with `slot` given, all of them are answered by it."""
        self._decoder = decoder
        self._slots = slots
        self._same = slot is not None
        shape = (len(decoder.blocks), n_rows, decoder.n_kv_heads, n_tokens, decoder.head_dim)
        self._keys = torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
        self._values = torch.zeros_like(self._keys)
        self._factors = slots.of_rows(torch.full((1,), slot, device=decoder.device)) if slot is not None else slots.room(n_rows)
        self._n_rows = n_rows
        self._replays = CudaGraphCache[_Given](decoder.device)
        self.rows: list[_Row] = []

    @property
    def room(self) -> int:
        """How many more questions can be seated."""
        return self._n_rows - len(self.rows)

    def seat(self, newcomers: Sequence[_Begun]) -> None:
        """Copy what their passes left to the next free rows."""
        start = len(self.rows)
        for n, begun in enumerate(newcomers):
            for cache, found in ((self._keys, begun.keys), (self._values, begun.values)):
                there = 0
                for part in begun.parts:
                    here, there = there, there + part.stop - part.start
                    cache[:, start + n, :, here:there] = found[:, part].transpose(1, 2)
            self.rows.append(_Row(begun, [begun.first]))
        if newcomers and not self._same:
            self._slots.fill(self._factors, start, [begun.question.slot for begun in newcomers])

    def step(self, end_ids: frozenset[int], max_new_tokens: int) -> list[_Row]:
        """Add a token to every row; return those that are complete, which leave."""
        done = [place for place, row in enumerate(self.rows) if len(row.answer) == max_new_tokens]
        if not done:
            for place, token in enumerate(self._next()):
                if token in end_ids:
                    done.append(place)
                else:
                    self.rows[place].answer.append(token)
        left = [self.rows[place] for place in done]
        for place in reversed(done):
            self._vacate(place)
        return left

    def _vacate(self, place: int) -> None:
        last = len(self.rows) - 1
        if place != last:
            self.rows[place] = self.rows[last]
            self._keys[:, place], self._values[:, place] = self._keys[:, last], self._values[:, last]
            for update in self._factors if not self._same else ():
                for factor in update.factors if update else ():
                    factor[place] = factor[last]
        self.rows.pop()

    def _next(self) -> list[int]:
        """Run every row's last token; return the likeliest next ones."""
        decoder, n, most = self._decoder, len(self.rows), self._keys.shape[3]
        places = [len(row.begun.question.prompt) + len(row.answer) - 1 for row in self.rows]
        tokens = [row.answer[-1] for row in self.rows]
        reach = max(places) + 1
        if decoder.padding.alike:
            # Few kinds of steps: a longer reach, and rows after the last that nobody reads.
            n, reach = min(bucket_size(n), self._n_rows), min(_round_up(reach, 4 * PAD_TO), most)
            tokens, places = ([*numbers, *[0] * (n - len(numbers))] for numbers in (tokens, places))
        token, place = torch.tensor([tokens, places]).to(decoder.device).unbind(0)
        return self._replays(self._run, _Given(token, place, *decoder.turns(place, most), reach))[: len(self.rows)].tolist()

    @torch.inference_mode()
    def _run(self, given: _Given) -> Int[Tensor, " b"]:
        decoder, n, reach = self._decoder, len(given.token), given.reach
        x = decoder.embedding[given.token]
        later = torch.arange(reach, device=decoder.device) > given.place[:, None]
        bias = torch.zeros(later.shape, device=decoder.device).masked_fill_(later, float("-inf"))[:, None, None]
        factors = [update if self._same or update is None else update.first(n) for update in self._factors]
        runs = whole(n, 1)
        every = torch.arange(n, device=decoder.device)
        for layer, block in enumerate(decoder.blocks):
            own = factors[4 * layer : 4 * layer + 4]
            heads = decoder.heads(adapted(block.qkv, decoder.norm(x, block.norm_in)[0], own[0], runs), given.cos, given.sin)
            self._keys[layer, every, :, given.place], self._values[layer, every, :, given.place] = heads[1:]
            found = _attend_cached(heads[0], self._keys[layer, :n, :, :reach], self._values[layer, :n, :, :reach], bias)
            x = after_attention(decoder, block, x, found, own, runs)
        return functional.linear(decoder.norm(x, decoder.norm_out)[0], decoder.head).argmax(-1)


def _attend_cached(
    queries: Float[Tensor, "b H e"], keys: Float[Tensor, "b G t e"], values: Float[Tensor, "b G t e"], bias: Float[Tensor, "b 1 1 t"]
) -> Float[Tensor, "b H*e"]:
    """Return what one token per row finds among the keys that `bias` lets it see."""
    grouped = queries.unflatten(1, (keys.shape[1], -1))
    scores = torch.matmul(grouped, keys.transpose(2, 3)).to(torch.promote_types(queries.dtype, torch.float32))
    shares = torch.softmax(scores.mul_(queries.shape[-1] ** -0.5).add_(bias), dim=-1).to(queries.dtype)
    return torch.matmul(shares, values).flatten(1)


def after_attention(
    decoder: Decoder, block: Block, x: Float[Tensor, "N d"], found: Tensor, own: Sequence[Update | None], runs: Sequence[Run]
) -> Float[Tensor, "N d"]:
    """Return a block's output from its input and what its attention found; `own` are the factors of its four sites."""
    (y,) = adapted(block.out, found, own[1], runs)
    x = x + y
    gate, up = adapted(block.gate_up, decoder.norm(x, block.norm_mid)[0], own[2], runs)
    (y,) = adapted(block.down, functional.silu(gate) * up, own[3], runs)
    return x + y


def _laid_out(questions: Sequence[Question], rows: Sequence[Reading], *, pad_id: int) -> tuple[Int[Tensor, "row t"], Bool[Tensor, "row t"]]:
    """Return the ids of the rows' own tokens, right-padded, and which of them predict something that is read."""
    ids = torch.full((len(rows), max(row.n_own for row in rows)), pad_id)
    predicts = torch.zeros(ids.shape, dtype=torch.bool)
    for n, row in enumerate(rows):
        ids[n, : row.n_own] = torch.tensor(row.ids[row.begin :])
        # A beginning predicts nothing that is wanted, but every row of a batch reaches up to a prediction.
        predicts[n, row.n_own - 1] = not row.together
        for question in (questions[number] for number in row.together):
            first = len(question.prompt) - 1 - row.begin
            predicts[n, first : first + _n_predicted(question)] = True
    return ids, predicts


def _tokens(start: int, n: int) -> slice:
    return slice(start, start + n)


def _n_predicted(question: Question) -> int:
    """Return at how many places a pass reads logits for a question: for every token of its reference, or for the first of an answer."""
    return max(1, len(question.reference))


def _round_up(n: int, to: int = PAD_TO) -> int:
    return -(-n // to) * to
