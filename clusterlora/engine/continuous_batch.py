"""Answers that are generated side by side while others come and go: what serves requests that nobody knows in advance.

An `InferenceBackend` answers questions that are all there when it is asked. Here a question joins between two tokens of the others, which
changes no answer: every row of the decode batch has its own adapters, keys, values and sampler.
Source: Yu et al. 2022, Orca (continuous batching).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from clusterlora.engine.decode_batch import DecodeBatch, DecodeRow
from clusterlora.engine.decoder_inference import DecoderInference
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import InferenceBackend
from clusterlora.engine.memory import free_cached_memory, is_allocation_failure

End = Literal["stop", "length"]
"""Why an answer ended: by its end token, or at its limit."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A question that joins the batch under a number of its own, to be answered with at most `limit` tokens."""

    number: int
    question: Question
    limit: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """The next tokens of an answer, without an end token. `end` says why no more will come; None: more may."""

    number: int
    ids: tuple[int, ...]
    end: End | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """An answer that cannot be given, and why."""

    number: int
    error: Exception


class ContinuousBatch(Protocol):
    """A batch that questions join and leave."""

    @property
    def n_free(self) -> int:
        """Questions that can be admitted."""
        ...

    @property
    def n_running(self) -> int:
        """Questions that have been admitted and have not ended."""
        ...

    def admit(self, admissions: Sequence[Admission]) -> list[Tokens]:
        """Let questions join, at most `n_free`; return what is known of their answers. If it raises, none of them has joined."""
        ...

    def step(self) -> Sequence[Tokens | Failed]:
        """Return the next tokens of the running answers, and which have failed by themselves. If it raises, all have."""
        ...

    def cancel(self, number: int) -> None:
        """Let a question leave before its answer has ended; numbers that are not running are ignored."""
        ...

    def clear(self) -> None:
        """Let all questions leave."""
        ...


def continuous_batch(backend: InferenceBackend, *, n_rows: int, n_tokens: int) -> ContinuousBatch:
    """Return a batch of at most `n_rows` questions on a backend; with the written-out decoder they join between two tokens.

    Args:
        n_tokens: tokens of the longest prompt and its answer together.
    """
    if isinstance(backend, DecoderInference):
        return _DecoderBatch(backend, n_rows=n_rows, n_tokens=n_tokens)
    return _WholeBatches(backend, n_rows)


class _DecoderBatch:
    """A decode batch of the written-out decoder."""

    def __init__(self, inference: DecoderInference, *, n_rows: int, n_tokens: int) -> None:
        self._inference = inference
        self._batch: DecodeBatch = inference.decode_batch(n_rows=n_rows, n_tokens=n_tokens)
        self._n_tokens = n_tokens

    @property
    def n_free(self) -> int:
        """See `ContinuousBatch`."""
        return self._batch.n_free_rows

    @property
    def n_running(self) -> int:
        """See `ContinuousBatch`."""
        return len(self._batch.rows)

    @torch.inference_mode()
    def admit(self, admissions: Sequence[Admission]) -> list[Tokens]:
        """See `ContinuousBatch`."""
        if not admissions:
            return []
        too_long = next((a for a in admissions if len(a.question.prompt) + a.limit > self._n_tokens), None)
        assert too_long is None, f"{too_long} is longer than {self._n_tokens} tokens"
        tokens: list[Tokens] = []
        joining: list[DecodeRow] = []
        for prefilled in self._inference.prefill([admission.question for admission in admissions]):
            number, limit, first = admissions[prefilled.number].number, admissions[prefilled.number].limit, prefilled.first_token
            if first in self._inference.end_ids:
                tokens.append(Tokens(number, (), "stop"))
            else:
                tokens.append(Tokens(number, (first,)))
                joining.append(DecodeRow(prefilled, number, limit, [first]))
        self._batch.admit(joining)
        return tokens

    @torch.inference_mode()
    def step(self) -> list[Tokens]:
        """See `ContinuousBatch`."""
        before = {row.number: len(row.answer) for row in self._batch.rows}
        ended = self._batch.step(self._inference.end_ids)
        tokens = [Tokens(row.number, (), "length" if len(row.answer) >= row.limit else "stop") for row in ended]
        tokens += [Tokens(row.number, tuple(row.answer[before[row.number] :])) for row in self._batch.rows]
        return [some for some in tokens if some.ids or some.end]

    def cancel(self, number: int) -> None:
        """See `ContinuousBatch`."""
        self._batch.cancel(number)

    def clear(self) -> None:
        """See `ContinuousBatch`."""
        self._batch.rows.clear()


class _WholeBatches:
    """Batch by batch on any other backend: what has joined is answered to its end, and what comes meanwhile waits."""

    def __init__(self, backend: InferenceBackend, n_rows: int) -> None:
        self._backend = backend
        self._n_rows = n_rows
        self._joined: dict[int, Admission] = {}

    @property
    def n_free(self) -> int:
        """See `ContinuousBatch`."""
        return self._n_rows - len(self._joined)

    @property
    def n_running(self) -> int:
        """See `ContinuousBatch`."""
        return len(self._joined)

    def admit(self, admissions: Sequence[Admission]) -> list[Tokens]:
        """See `ContinuousBatch`."""
        self._joined |= {admission.number: admission for admission in admissions}
        return []

    def step(self) -> list[Tokens | Failed]:
        """See `ContinuousBatch`."""
        joined, self._joined = list(self._joined.values()), {}
        return self._answered(joined) if joined else []

    def _answered(self, joined: Sequence[Admission]) -> list[Tokens | Failed]:
        """Answer questions to their end. If that fails they are asked one by one, so that only those fail that cannot be answered."""
        try:
            return list(self._replies(joined))
        except Exception as error:  # noqa: BLE001  (it is handed on to whom it concerns)
            if len(joined) == 1:
                return [Failed(joined[0].number, error)]
            is_memory = is_allocation_failure(error)
        if is_memory:
            free_cached_memory()
        return [answer for admission in joined for answer in self._answered([admission])]

    def _replies(self, joined: Sequence[Admission]) -> Iterator[Tokens]:
        longest = max(admission.limit for admission in joined)
        replies = self._backend.reply([admission.question for admission in joined], max_new_tokens=longest, batch_size=len(joined))
        for reply in replies:
            admission = joined[reply.number]
            end: End = "length" if len(reply.ids) >= admission.limit else "stop"
            yield Tokens(admission.number, reply.ids[: admission.limit], end)

    def cancel(self, number: int) -> None:
        """See `ContinuousBatch`."""
        self._joined.pop(number, None)

    def clear(self) -> None:
        """See `ContinuousBatch`."""
        self._joined.clear()
