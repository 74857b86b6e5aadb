"""Many stacks of adapters on one base, ready to answer: through the written-out decoder where there is one, else through transformers."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from clusterlora.evaluation.decoder_inference import DecoderInference
from clusterlora.evaluation.generate import Question, Reply, generate, reference_nll
from clusterlora.models.base import BaseModel
from clusterlora.models.decoder import decoder_of
from clusterlora.models.stacked import StackedModel, Weights


class InferenceBackend(Protocol):
    """Slots of adapters; slot 0 is the base model."""

    def reply(self, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
        """Yield every question's greedy answer and likelihood, in no particular order; only likelihoods when no tokens are asked for."""
        ...

    def close(self) -> None:
        """Give the model back as it was."""
        ...


def inference_backend(base: BaseModel, weights: Sequence[Weights]) -> InferenceBackend:
    """Return a base with these adapters in the slots 1, 2, ... Raises BadData when one belongs to another base."""
    decoder = decoder_of(base.model)
    if decoder is not None and not any(one.prefix is not None for one in weights):
        return DecoderInference(decoder, weights, end_ids=base.end_ids, pad_id=base.pad_id)
    return _TransformersInference(base, weights)


class _TransformersInference:
    """Any architecture, and prefixes."""

    def __init__(self, base: BaseModel, weights: Sequence[Weights]) -> None:
        self._base = base
        self._stacked = StackedModel(base.model)
        self._stacked.load(weights)

    def reply(self, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
        """See `InferenceBackend`."""
        base = self._base
        nll = np.full(len(questions), np.nan)
        if asked := [number for number, question in enumerate(questions) if question.reference]:
            nll[asked] = reference_nll(self._stacked, [questions[n] for n in asked], pad_id=base.pad_id, batch_size=batch_size)
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
