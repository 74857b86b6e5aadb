"""Answers items with compositions of adapters and scores the answers: greedy generation, reference likelihood, metrics."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clusterlora.chat.encoder import EncodedTurn
from clusterlora.data.prompts import prompt_encoder
from clusterlora.engine.base import BaseModel
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import InferenceBackend, all_replies, inference_backend
from clusterlora.engine.memory import BatchSize, is_allocation_failure
from clusterlora.engine.stacked import Weights
from clusterlora.errors import BadData
from clusterlora.evaluation.cut import cut_scores
from clusterlora.evaluation.label_scores import score_labels
from clusterlora.evaluation.metric import LabelProbabilities, Scorable
from clusterlora.evaluation.metrics import METRICS, generates, scores_labels
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


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """An item to be answered by a composition of adapters."""

    composition_key: str
    item: Item
    n_shots: int = 0
    """Exchanges that the prompt shows before the dialogue's own turns."""


@dataclass(frozen=True, slots=True)
class _Replies:
    """What a backend answered to each request: words, likelihood of the reference, the prompt, and scores that say whether it was cut."""

    texts: Sequence[str]
    nll: Float[np.ndarray, " request"]
    turns: Sequence[EncodedTurn]
    cut: Sequence[tuple[tuple[str, float], ...]]
    probabilities: LabelProbabilities | None = None


class Answerer:
    """Answers items with any number of compositions at once.

    Metrics that compare with train responses need `train`, those of labels need `labels`.
    """

    def __init__(
        self,
        base: BaseModel,
        embedder: Embedder,
        settings: PreparedEvaluation,
        model: PreparedModel,
        *,
        train: TrainResponses | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        self._base = base
        self._embedder = embedder
        self._settings = settings
        self._train = train
        self._labels = tuple(labels)
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
        slots = [slot_by_key[request.composition_key] for request in requests]
        backend = inference_backend(self._base, [weights_by_composition[key] for key in keys])
        try:
            answered = self._scored_labels if scores_labels(metrics) else self._generated
            replies = answered(backend, requests, slots, metrics, run_log)
        finally:
            backend.close()
        scorable = Scorable(
            texts=replies.texts,
            references=[request.item.reference for request in requests],
            embedder=self._embedder,
            nll=replies.nll,
            persona_ids=[request.item.persona_id for request in requests],
            train=self._train,
            prompt_tokens=[len(turn.prompt) for turn in replies.turns],
            probabilities=replies.probabilities,
        )
        scores = {name: METRICS[name].score(scorable) for name in metrics if not METRICS[name].pairwise}
        shown = [shots_scores(request.n_shots, turn.n_dropped) for request, turn in zip(requests, replies.turns, strict=True)]
        return [
            Answer(
                request.composition_key,
                request.item.id,
                request.item.persona_id,
                request.item.split,
                replies.texts[number],
                (*((name, float(values[number])) for name, values in scores.items()), *replies.cut[number], *shown[number]),
            )
            for number, request in enumerate(requests)
        ]

    def _generated(
        self,
        backend: InferenceBackend,
        requests: Sequence[AnswerRequest],
        slots: Sequence[int],
        metrics: Sequence[str],
        run_log: RunLog,
    ) -> "_Replies":
        """Return every request's generated text, where a metric reads it, and its reference's likelihood."""
        references = [request.item.reference for request in requests]
        turns = self._encoder.encode_turns([(request.item.messages, request.item.reference) for request in requests])
        questions = [Question(turn.prompt, slot, turn.response) for slot, turn in zip(slots, turns, strict=True)]
        references_to_embed = references if any(METRICS[name].embeds for name in metrics) else None
        generating, limit = generates(metrics), self._settings.max_new_tokens
        texts, nll, n_tokens = self._run(backend, questions, references_to_embed, generating=generating, run_log=run_log)
        cut = [cut_scores(n, len(question.reference), limit) if generating else () for n, question in zip(n_tokens, questions, strict=True)]
        return _Replies(texts, nll, turns, cut)

    def _scored_labels(
        self,
        backend: InferenceBackend,
        requests: Sequence[AnswerRequest],
        slots: Sequence[int],
        _metrics: Sequence[str],
        run_log: RunLog,
    ) -> "_Replies":
        """Return every request's likeliest label and the likelihoods of all; nothing is generated.

        Raises:
            BadData: there are no labels, or a reference is none of them.
        """
        if unknown := next((r.item for r in requests if r.item.reference not in self._labels), None):
            n_labels = len(self._labels)
            raise BadData(f"item {unknown.id!r} is answered with {unknown.reference!r}, none of the {n_labels} labels; check data.labels")
        prompts = [request.item.messages for request in requests]
        scores = score_labels(
            backend, self._encoder, prompts, slots, self._labels, batch_size=self._batch_size, on_scored=lambda: run_log.advance(1)
        )
        probabilities = scores.probabilities
        nll = np.array([scores.mean_nll(number, request.item.reference) for number, request in enumerate(requests)])
        return _Replies(probabilities.likeliest, nll, scores.turns[:: len(self._labels)], [()] * len(requests), probabilities)

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
            texts[reply.number] = self._encoder.words(reply.ids)
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
