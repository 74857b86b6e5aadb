"""The backend that answers with many adapters on one base: the written-out decoder where there is one, else the transformers model."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from clusterlora.engine.base import BaseModel
from clusterlora.engine.decoder_inference import DecoderInference
from clusterlora.engine.families import decoder_of
from clusterlora.engine.generation import Question, Reply, generate, reference_nll
from clusterlora.engine.stacked import StackedModel, Weights


class InferenceBackend(Protocol):
    """A base with adapters in slots; slot 0 is the base model itself."""

    def reply(self, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
        """Yield every question's greedy answer and its reference's likelihood, in any order; with `max_new_tokens` None, no answers."""
        ...

    def close(self) -> None:
        """Restore the model."""
        ...


def inference_backend(base: BaseModel, weights: Sequence[Weights]) -> InferenceBackend:
    """Return a backend with these adapters in the slots 1, 2, ... Raises BadData if one belongs to another base."""
    decoder = decoder_of(base.model)
    if decoder is not None and not any(adapter.prefix is not None for adapter in weights):
        return DecoderInference(decoder, weights, end_ids=base.end_ids, pad_id=base.pad_id)
    return _TransformersInference(base, weights)


class _TransformersInference:
    """The backend for any architecture, and for prefixes."""

    def __init__(self, base: BaseModel, weights: Sequence[Weights]) -> None:
        self._base = base
        self._stacked = StackedModel(base.model)
        self._stacked.load(weights)

    def reply(self, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
        """See `InferenceBackend`."""
        base = self._base
        nll = np.full(len(questions), np.nan)
        if with_reference := [number for number, question in enumerate(questions) if question.reference]:
            nll[with_reference] = reference_nll(
                self._stacked, [questions[n] for n in with_reference], pad_id=base.pad_id, batch_size=batch_size
            )
        if max_new_tokens is None:
            yield from (Reply(number, (), float(nll[number])) for number in range(len(questions)))
            return
        for number, ids in generate(
            self._stacked, questions, end_ids=base.end_ids, pad_id=base.pad_id, max_new_tokens=max_new_tokens, batch_size=batch_size
        ):
            yield Reply(number, ids, float(nll[number]))

    def close(self) -> None:
        """See `InferenceBackend`."""
        self._stacked.close()
