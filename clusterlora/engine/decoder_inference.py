"""Answers and reference likelihoods through a written-out decoder, each row of a batch with its own adapters.

legend   l layer, n scored token (whose logits are used), N tokens of all rows, d width, G key-value heads, e width of a head

One prefill pass over a dialogue gives the likelihoods of all its references. It also computes the keys and values of every turn's prompt,
because a later prompt begins with the earlier turns and their references. Prefixes common to several dialogues are computed once
(`engine.prefix_sharing`). Decoding a question starts from a copy of its keys and values, with the first token already known
(`engine.decode_batch`).
"""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from clusterlora.engine.adapter_slots import AdapterSlots, on_segments
from clusterlora.engine.decode_batch import DecodeBatch, DecodeRow, Prefilled, round_up
from clusterlora.engine.families.decoder import Decoder
from clusterlora.engine.generation import Question, Reply, predicting_tokens
from clusterlora.engine.packing import n_rows_that_fit, pack_batch
from clusterlora.engine.prefix_attention import PrefillAttention, segment_attentions
from clusterlora.engine.prefix_sharing import PrefillSequence, prefill_streams
from clusterlora.engine.ragged import RaggedRows
from clusterlora.engine.sampling import sampler_of
from clusterlora.engine.stacked import Weights


class DecoderInference:
    """The `InferenceBackend` of a decoder with adapters in slots; slot 0 is the base model."""

    def __init__(self, decoder: Decoder, weights: Sequence[Weights], *, end_ids: frozenset[int], n_resident: int | None = None) -> None:
        """Load adapters without prefixes into the slots 1, 2, ..., `n_resident` of them at once, else all.

        Raises:
            BadData: one belongs to another base.
        """
        self._decoder = decoder
        self._slots = AdapterSlots(decoder, weights, n_resident)
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

    def decode_batch(self, *, n_rows: int, n_tokens: int) -> DecodeBatch:
        """Return an empty decode batch; prompt and answer of a row have at most `n_tokens` tokens."""
        return DecodeBatch(self._decoder, self._slots, n_rows=n_rows, n_tokens=round_up(n_tokens))

    @torch.inference_mode()
    def prefill(self, questions: Sequence[Question]) -> list[Prefilled]:
        """Return the questions, in any order, ready to decode."""
        streams = prefill_streams(questions, len(questions), share=not self._decoder.padding.uniform)
        passes = [sequences for stream in streams for sequences in self._prefill_batches(stream, len(questions))]
        return [prefilled for sequences in passes for prefilled in self._prefill(questions, sequences)]

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end an answer."""
        return self._end_ids

    def _prefill_batches(self, stream: Sequence[PrefillSequence], batch_size: int) -> Iterator[Sequence[PrefillSequence]]:
        """Yield the sequences of each prefill pass, within the decoder's token budget."""
        start = 0
        while start < len(stream):
            lengths = [sequence.n_own_tokens for sequence in stream[start : start + batch_size]]
            size = n_rows_that_fit(lengths, self._decoder.tokens_per_pass, self._decoder.padding)
            yield stream[start : start + size]
            start += size

    def _decode(
        self, questions: Sequence[Question], prefilled_batches: Iterator[list["Prefilled"]], *, max_new_tokens: int, batch_size: int
    ) -> Iterator[Reply]:
        longest = max(len(q.prompt) + max(max_new_tokens, len(q.reference)) for q in questions)
        common_slot = questions[0].slot if len({q.slot for q in questions}) == 1 else None
        n_rows = min(batch_size, len(questions))
        decode_batch = DecodeBatch(self._decoder, self._slots, n_rows=n_rows, n_tokens=round_up(longest), common_slot=common_slot)
        waiting: deque[Prefilled] = deque()
        while True:
            while decode_batch.n_free_rows > len(waiting) and (batch := next(prefilled_batches, None)) is not None:
                for prefilled in batch:
                    if prefilled.first_token in self._end_ids:
                        yield Reply(prefilled.number, (), prefilled.nll)
                    else:
                        waiting.append(prefilled)
            admitted = [waiting.popleft() for _ in range(min(decode_batch.n_free_rows, len(waiting)))]
            decode_batch.admit([DecodeRow(p, p.number, max_new_tokens, [p.first_token]) for p in admitted])
            if not decode_batch.rows:
                return
            for row in decode_batch.step(self._end_ids):
                yield Reply(row.number, tuple(row.answer), row.prefilled.nll)

    def _prefill(self, questions: Sequence[Question], sequences: Sequence[PrefillSequence]) -> list["Prefilled"]:
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
                sampler = sampler_of(question.sampling)
                token = sampler.draw(decoder.logits(hidden[start : start + 1])[0]) if sampler else int(likeliest[start])
                prefilled.append(Prefilled(number, question, mean, token, keys, values, ranges, sampler))
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


def _ragged(questions: Sequence[Question], rows: Sequence[PrefillSequence]) -> RaggedRows:
    """Return the rows' own tokens. The last one of a shared prefix predicts, too, and is ignored: `pack_batch` wants one in every row."""
    ranges = [
        [predicting_tokens(questions[number], start=row.prefix_length) for number in row.turns] or [range(len(row.ids) - 1, len(row.ids))]
        for row in rows
    ]
    return RaggedRows.with_predictions_in([row.ids[row.prefix_length :] for row in rows], ranges)


def _token_range(start: int, n: int) -> slice:
    return slice(start, start + n)
