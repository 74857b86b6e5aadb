"""Answers items with compositions of adapters and scores the answers: greedy generation, reference likelihood, metrics."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clusterlora.data.prompts import prompt_encoder
from clusterlora.engine.base import BaseModel
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import InferenceBackend, all_replies, inference_backend
from clusterlora.engine.memory import BatchSize, is_allocation_failure
from clusterlora.engine.stacked import Weights
from clusterlora.evaluation.cut import cut_scores
from clusterlora.evaluation.metric import Scorable
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.shown import shots_scores
from clusterlora.evaluation.train_responses import TrainResponses
from clusterlora.ports.embedder import Embedder
from clusterlora.ports.run_log import RunLog
from clusterlora.settings import PreparedEvaluation, PreparedModel
from clusterlora.values import Answer, Item

log = logging.getLogger(__name__)

ANSWERS_PER_EMBEDDING_BATCH = 256
"""Answers are embedded while others are generated, so that progress covers both: embedding may take as long as generating."""
GPU_BATCH_FACTOR = 4
"""On a GPU, batches are larger by this factor, at about the same time per batch."""


def generates(metrics: Sequence[str]) -> bool:
    """Return whether these metrics need generated answers."""
    return any(METRICS[name].reads_answers for name in metrics)


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """An item to be answered by a composition of adapters."""

    composition_key: str
    item: Item
    n_shots: int = 0
    """Exchanges that the prompt shows before the dialogue's own turns."""


class Answerer:
    """Answers items with any number of compositions at once. Metrics that compare with train responses need `train`."""

    def __init__(
        self,
        base: BaseModel,
        embedder: Embedder,
        settings: PreparedEvaluation,
        model: PreparedModel,
        *,
        train: TrainResponses | None = None,
    ) -> None:
        self._base = base
        self._embedder = embedder
        self._settings = settings
        self._train = train
        self._encoder = prompt_encoder(base.tokenizer, model)
        n_rows = settings.batch_size * (GPU_BATCH_FACTOR if base.model.device.type == "cuda" else 1)
        self._batch_size = BatchSize(n_rows, name="evaluation.batch_size")

    def answer(
        self, requests: Sequence[AnswerRequest], weights_by_composition: Mapping[str, Weights], *, metrics: Sequence[str], run_log: RunLog
    ) -> list[Answer]:
        """Return an answer per request, in order. Text is generated only if a metric uses it; its scores then say whether it was cut.

        If an allocation fails, answering goes on with half the batch size; rows are independent, so scores stay the same.

        Raises:
            OutOfMemory: a single row does not fit.
        """
        keys = sorted({request.composition_key for request in requests})
        slot_by_key = {key: slot for slot, key in enumerate(keys, start=1)}
        backend = inference_backend(self._base, [weights_by_composition[key] for key in keys])
        turns = self._encoder.encode_turns([(request.item.messages, request.item.reference) for request in requests])
        questions = [
            Question(turn.prompt, slot_by_key[request.composition_key], turn.response)
            for request, turn in zip(requests, turns, strict=True)
        ]
        references = [request.item.reference for request in requests]
        references_to_embed = references if any(METRICS[name].embeds for name in metrics) else None
        generating = generates(metrics)
        try:
            texts, nll, n_tokens = self._run(backend, questions, references_to_embed, generating=generating, run_log=run_log)
        finally:
            backend.close()
        scorable = Scorable(
            texts=texts,
            references=references,
            embedder=self._embedder,
            nll=nll,
            persona_ids=[request.item.persona_id for request in requests],
            train=self._train,
            prompt_tokens=[len(question.prompt) for question in questions],
        )
        scores = {name: METRICS[name].score(scorable) for name in metrics}
        limit = self._settings.max_new_tokens
        cut = [cut_scores(n, len(question.reference), limit) if generating else () for n, question in zip(n_tokens, questions, strict=True)]
        shown = [shots_scores(request.n_shots, turn.n_dropped) for request, turn in zip(requests, turns, strict=True)]
        return [
            Answer(
                request.composition_key,
                request.item.id,
                request.item.persona_id,
                request.item.split,
                texts[number],
                (*((name, float(values[number])) for name, values in scores.items()), *cut[number], *shown[number]),
            )
            for number, request in enumerate(requests)
        ]

    def _run(
        self,
        backend: InferenceBackend,
        questions: Sequence[Question],
        references_to_embed: Sequence[str] | None,
        *,
        generating: bool,
        run_log: RunLog,
    ) -> tuple[list[str], np.ndarray, list[int]]:
        """Return every question's answer, likelihood and number of answer tokens.

        With `references_to_embed`, answers and references are in the embedder's cache.
        """
        texts, nll, n_tokens = [""] * len(questions), np.zeros(len(questions)), [0] * len(questions)
        pending: list[str] = []
        max_new_tokens = self._settings.max_new_tokens if generating else None
        for reply in all_replies(backend, questions, max_new_tokens=max_new_tokens, batch_size=self._batch_size):
            texts[reply.number] = str(self._base.tokenizer.decode(list(reply.ids), skip_special_tokens=True)).strip()
            nll[reply.number], n_tokens[reply.number] = reply.nll, len(reply.ids)
            if references_to_embed is not None:
                pending += texts[reply.number], references_to_embed[reply.number]
                if len(pending) >= 2 * ANSWERS_PER_EMBEDDING_BATCH:
                    self._embed(pending)
                    pending.clear()
            run_log.advance(1)
        return texts, nll, n_tokens

    def _embed(self, texts: Sequence[str]) -> None:
        """Fill the embedder's cache, unless the answering leaves no memory for it: metrics ask for the same embeddings after it."""
        try:
            self._embedder.encode(texts)
        except (RuntimeError, MemoryError) as error:
            if not is_allocation_failure(error):
                raise
            log.warning("no memory to embed answers while others are generated; they are embedded afterwards")
