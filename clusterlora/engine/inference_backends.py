"""The backend that answers with many adapters on one base: the written-out decoder where there is one, else the transformers model.

Adapters that the decoder cannot add answer apart from all others, so that they slow down none.
"""

import logging
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from peft import PeftModel

from clusterlora.engine.backends import log_outside_blocks
from clusterlora.engine.base import BaseModel
from clusterlora.engine.decoder_inference import DecoderInference
from clusterlora.engine.families import decoder_of
from clusterlora.engine.generation import Question, Reply, generate, reference_nll
from clusterlora.engine.kinds import kind_of
from clusterlora.engine.memory import BatchSize, is_allocation_failure
from clusterlora.engine.peft_folder import remove_adapters
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
        n_resident: adapters that are in memory at once, more only if rows of a pass ask for more; by default all. On bases that are not
            written out all are, and so are those beside prefixes or kinds that PEFT alone can add.

    Raises:
        BadData: one belongs to another base.
    """
    apart, names = dict[int, Weights](), set[str]()
    for slot, adapter in enumerate(weights, start=1):
        if adapter.peft_folder is not None or adapter.prefix is not None:
            apart[slot] = adapter
        else:
            names |= adapter.factors.keys()
    if any(adapter.prefix is not None for adapter in apart.values()):
        refuse_spread_prefix(base.model)
    n_folders = sum(adapter.peft_folder is not None for adapter in apart.values())
    if n_folders:
        log.warning("%d of %d adapters answer one after another: their kinds cannot share a pass", n_folders, len(weights))
    decoder = decoder_of(base.model)
    names &= {name for name, _ in base.model.named_modules()}
    if decoder is not None and not log_outside_blocks(decoder, names, "answering"):
        shared = [Weights() if slot in apart else one for slot, one in enumerate(weights, start=1)] if apart else weights
        inference = DecoderInference(decoder, shared, end_ids=base.end_ids, n_resident=n_resident)
        return _DividedInference(base, apart, inference) if apart else inference
    if n_folders:
        return _DividedInference(base, dict(enumerate(weights, start=1)))
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
        try:
            self._stacked.load(weights)
        except BaseException:
            self._stacked.close()
            raise

    def reply(self, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
        """See `InferenceBackend`."""
        base = self._base
        scored = reference_nll(self._stacked, questions, pad_id=base.pad_id, batch_size=batch_size)
        if max_new_tokens is None:
            yield from (Reply(number, (), nll) for number, nll in scored)
            yield from (Reply(number, (), math.nan) for number, question in enumerate(questions) if not question.reference)
            return
        nll = dict(scored)
        for number, ids in generate(
            self._stacked, questions, end_ids=base.end_ids, pad_id=base.pad_id, max_new_tokens=max_new_tokens, batch_size=batch_size
        ):
            yield Reply(number, ids, nll.get(number, math.nan))

    def close(self) -> None:
        """See `InferenceBackend`."""
        self._stacked.close()


_Way = Path | Literal["decoder", "stacked"]
"""How an adapter answers: added by PEFT from its folder, by the written-out decoder, or stacked on the transformers model."""


class _DividedInference:
    """Each question is answered by the fastest way that its adapter has.

    What the written-out decoder cannot add goes through transformers: prefixes together, what only PEFT can add one after another.
    """

    def __init__(self, base: BaseModel, apart: Mapping[int, Weights], decoder: DecoderInference | None = None) -> None:
        """Hold what the decoder does not add, by slot; without a decoder, all adapters."""
        self._base = base
        self._decoder = decoder
        self._folder_by_slot = {slot: one.peft_folder for slot, one in apart.items() if one.peft_folder is not None}
        self._stacked_by_slot = {slot: one for slot, one in apart.items() if one.peft_folder is None}

    def reply(self, questions: Sequence[Question], *, max_new_tokens: int | None, batch_size: int) -> Iterator[Reply]:
        """See `InferenceBackend`."""
        numbers_by_way: dict[_Way, list[int]] = {}
        for number, question in enumerate(questions):
            numbers_by_way.setdefault(self._way(question.slot), []).append(number)
        for way, numbers in numbers_by_way.items():
            with self._backend(way) as backend:
                asked = [replace(questions[number], slot=0) if isinstance(way, Path) else questions[number] for number in numbers]
                for reply in backend.reply(asked, max_new_tokens=max_new_tokens, batch_size=batch_size):
                    yield replace(reply, number=numbers[reply.number])

    def _way(self, slot: int) -> _Way:
        if (folder := self._folder_by_slot.get(slot)) is not None:
            return folder
        return "stacked" if self._decoder is None or slot in self._stacked_by_slot else "decoder"

    @contextmanager
    def _backend(self, way: _Way) -> Generator[InferenceBackend]:
        """Yield what answers in this way. What changes the model does so inside the block alone."""
        if way == "decoder":
            assert self._decoder is not None
            yield self._decoder
        elif way == "stacked":
            slots = range(1, 1 + max(self._stacked_by_slot, default=0))
            stacked = [self._stacked_by_slot.get(slot, Weights()) for slot in slots]
            with closing(_TransformersInference(self._base, stacked)) as backend:
                yield backend
        else:
            with _added(self._base, way), closing(_TransformersInference(self._base, [])) as backend:
                yield backend

    def close(self) -> None:
        """Do nothing: the model is as it was after each reply."""


@contextmanager
def _added(base: BaseModel, folder: Path) -> Generator[None]:
    """Add a PEFT folder's adapter to the base's layers inside the block. Raises BadData if it belongs to another base."""
    if kind_of(folder).name == "ia3" and has_quantised(base.model):
        raise BadData(f"adapter {folder.name} is IA3, which PEFT cannot take off a quantised base again; use a base that is not quantised")
    try:
        adapted = PeftModel.from_pretrained(base.model, str(folder))
    except (ValueError, RuntimeError) as error:
        remove_adapters(base.model)
        if is_allocation_failure(error):
            raise
        raise BadData(f"adapter {folder.name} does not fit {base.name}: {str(error).splitlines()[0]}") from error
    try:
        adapted.eval()
        yield
    finally:
        adapted.unload()
