"""The backend that answers with many adapters on one base: the written-out decoder where there is one, else the transformers model."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from peft import PeftModel

from clusterlora.engine.backends import log_outside_blocks
from clusterlora.engine.base import BaseModel
from clusterlora.engine.decoder_inference import DecoderInference
from clusterlora.engine.families import decoder_of
from clusterlora.engine.generation import Question, Reply, generate, reference_nll
from clusterlora.engine.kinds import kind_of
from clusterlora.engine.memory import BatchSize
from clusterlora.engine.placement import refuse_spread_prefix
from clusterlora.engine.stacked import StackedModel, Weights
from clusterlora.errors import BadData
from clusterlora.models.quantised import has_quantised

log = logging.getLogger(__name__)


class InferenceBackend(Protocol):
    """A base with adapters in slots; slot 0 is the base model itself."""

    def reply(self, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
        """Yield every question's greedy answer and its reference's likelihood, in any order; with `max_new_tokens` None, no answers."""
        ...

    def close(self) -> None:
        """Restore the model."""
        ...


def inference_backend(base: BaseModel, weights: Sequence[Weights], *, n_resident: int | None = None) -> InferenceBackend:
    """Return a backend with these adapters in the slots 1, 2, ...

    Args:
        weights: where not all are in memory, read again whenever one is asked for.
        n_resident: adapters that are in memory at once, more only if rows of a pass ask for more; by default all. Of bases that are not
            written out, and of prefixes and kinds that PEFT alone can add, all are.

    Raises:
        BadData: one belongs to another base.
    """
    with_folder, with_prefix, names = False, False, set[str]()
    for adapter in weights:
        with_folder |= adapter.peft_folder is not None
        with_prefix |= adapter.prefix is not None
        names |= adapter.factors.keys()
    if with_folder:
        return _PeftInference(base, weights)
    decoder = decoder_of(base.model)
    names &= {name for name, _ in base.model.named_modules()}
    if with_prefix:
        refuse_spread_prefix(base.model)
    if decoder is not None and not with_prefix and not log_outside_blocks(decoder, names, "answering"):
        return DecoderInference(decoder, weights, end_ids=base.end_ids, n_resident=n_resident)
    return _TransformersInference(base, weights)


def all_replies(
    backend: InferenceBackend, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: BatchSize
) -> Iterator[Reply]:
    """Yield what `InferenceBackend.reply` yields; when an allocation fails, go on with half the batch. Rows are independent.

    Raises:
        OutOfMemory: a single row does not fit.
    """
    left = dict(enumerate(questions))
    while left:
        numbers = list(left)
        with batch_size.attempt("answering"):
            for reply in backend.reply([left[number] for number in numbers], max_new_tokens=max_new_tokens, batch_size=batch_size.value):
                number = numbers[reply.number]
                del left[number]
                yield replace(reply, number=number)


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


class _PeftInference:
    """Adapters that only PEFT can add answer one after another, all others together."""

    def __init__(self, base: BaseModel, weights: Sequence[Weights]) -> None:
        self._base = base
        self._folder_by_slot = {slot: one.peft_folder for slot, one in enumerate(weights, start=1) if one.peft_folder is not None}
        self._together = [Weights() if one.peft_folder else one for one in weights]
        log.warning("%d of %d adapters answer one after another: their kinds cannot share a pass", len(self._folder_by_slot), len(weights))

    def reply(self, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
        """See `InferenceBackend`."""
        numbers_by_folder: dict[Path | None, list[int]] = {}
        for number, question in enumerate(questions):
            numbers_by_folder.setdefault(self._folder_by_slot.get(question.slot), []).append(number)
        for folder, numbers in numbers_by_folder.items():
            with self._backend(folder) as backend:
                asked = [questions[number] if folder is None else replace(questions[number], slot=0) for number in numbers]
                for reply in backend.reply(asked, max_new_tokens=max_new_tokens, batch_size=batch_size):
                    yield replace(reply, number=numbers[reply.number])

    @contextmanager
    def _backend(self, folder: Path | None) -> Iterator[InferenceBackend]:
        """Yield the backend of all adapters that can share a pass, or of a base that has a folder's adapter in its layers."""
        if folder is None:
            with closing(inference_backend(self._base, self._together)) as backend:
                yield backend
        else:
            with _added(self._base, folder):
                yield _TransformersInference(self._base, [])

    def close(self) -> None:
        """Do nothing: the model is as it was after each reply."""


@contextmanager
def _added(base: BaseModel, folder: Path) -> Iterator[None]:
    """Add a PEFT folder's adapter to the base's layers inside the block. Raises BadData if it belongs to another base."""
    if kind_of(folder).name == "ia3" and has_quantised(base.model):
        raise BadData(f"adapter {folder.name} is IA3, which PEFT cannot take off a quantised base again; use a base that is not quantised")
    try:
        adapted = PeftModel.from_pretrained(base.model, str(folder))
    except (ValueError, RuntimeError) as error:
        raise BadData(f"adapter {folder.name} does not fit {base.name}: {str(error).splitlines()[0]}") from error
    try:
        adapted.eval()
        yield
    finally:
        adapted.unload()
