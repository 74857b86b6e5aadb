"""Answers items with compositions of adapters and scores the answers: greedy generation, reference likelihood, metrics."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
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

ANSWERS_PER_BATCH = 256
"""Answers are embedded and scored while others are generated, so that they can be saved, and progress covers both: it may take as long."""
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
class _Reply:
    """What a backend answered to one request: words, likelihood of the reference, the prompt, and scores that say whether it was cut."""

    number: int
    text: str
    nll: float
    turn: EncodedTurn
    cut: tuple[tuple[str, float], ...] = ()
    label_probabilities: Float[np.ndarray, " label"] | None = None


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
        self,
        requests: Sequence[AnswerRequest],
        weights_by_composition: Mapping[str, Weights],
        *,
        metrics: Sequence[str],
        run_log: RunLog,
        on_scored: Callable[[Sequence[Answer]], None] = lambda _: None,
    ) -> list[Answer]:
        """Return an answer per request, in order. Text is generated only if a metric uses it; its scores then say whether it was cut.

        If an allocation fails, answering goes on with half the batch size; rows are independent, so scores stay the same.

        Args:
            on_scored: called with `ANSWERS_PER_BATCH` answers at a time, while others are generated; without memory to score them beside
                what generates, with all that wait, as soon as it takes less, or at the end.

        Raises:
            OutOfMemory: a single row does not fit.
        """
        keys = sorted({request.composition_key for request in requests})
        slot_by_key = {key: slot for slot, key in enumerate(keys, start=1)}
        slots = [slot_by_key[request.composition_key] for request in requests]
        answers = dict[int, Answer]()

        def take(replies: Sequence[_Reply], scored: Sequence[Answer]) -> None:
            answers.update(zip((reply.number for reply in replies), scored, strict=True))
            on_scored(scored)

        waiting, refused_beside = list[_Reply](), 0
        backend = inference_backend(self._base, [weights_by_composition[key] for key in keys])
        try:
            for reply in (self._label_replies if scores_labels(metrics) else self._replies)(backend, requests, slots, metrics):
                waiting.append(reply)
                # What does not fit beside what generates does not later, either, unless that has come to take less.
                if len(waiting) % ANSWERS_PER_BATCH == 0 and refused_beside != self._batch_size.value:
                    scored = self._scored_if_it_fits(requests, waiting, metrics)
                    if scored is None:
                        refused_beside = self._batch_size.value
                    else:
                        take(waiting, scored)
                        waiting = []
                run_log.advance(1)
        finally:
            backend.close()
        if waiting:
            waiting.sort(key=lambda reply: reply.number)
            take(waiting, self._scored(requests, waiting, metrics))
        return [answers[number] for number in range(len(requests))]

    def _scored(self, requests: Sequence[AnswerRequest], replies: Sequence[_Reply], metrics: Sequence[str]) -> list[Answer]:
        """Return the replies with the scores of all metrics."""
        answered = [requests[reply.number] for reply in replies]
        probabilities = [reply.label_probabilities for reply in replies if reply.label_probabilities is not None]
        scorable = Scorable(
            texts=[reply.text for reply in replies],
            references=[request.item.reference for request in answered],
            embedder=self._embedder,
            nll=np.array([reply.nll for reply in replies]),
            persona_ids=[request.item.persona_id for request in answered],
            train=self._train,
            prompt_tokens=[len(reply.turn.prompt) for reply in replies],
            probabilities=LabelProbabilities(self._labels, np.stack(probabilities)) if probabilities else None,
        )
        scores = {name: METRICS[name].score(scorable) for name in metrics if not METRICS[name].pairwise}
        return [
            Answer(
                request.composition_key,
                request.item.id,
                request.item.persona_id,
                request.item.split,
                reply.text,
                (
                    *((name, float(values[row])) for name, values in scores.items()),
                    *reply.cut,
                    *shots_scores(request.n_shots, reply.turn.n_dropped),
                ),
            )
            for row, (request, reply) in enumerate(zip(answered, replies, strict=True))
        ]

    def _replies(
        self, backend: InferenceBackend, requests: Sequence[AnswerRequest], slots: Sequence[int], metrics: Sequence[str]
    ) -> Iterator[_Reply]:
        """Yield every request's generated text, where a metric reads it, and its reference's likelihood."""
        turns = self._encoder.encode_turns([(request.item.messages, request.item.reference) for request in requests])
        questions = [Question(turn.prompt, slot, turn.response) for slot, turn in zip(slots, turns, strict=True)]
        limit = self._settings.max_new_tokens if generates(metrics) else None
        for reply in all_replies(backend, questions, max_new_tokens=limit, batch_size=self._batch_size):
            n_reference = len(questions[reply.number].reference)
            cut = () if limit is None else cut_scores(len(reply.ids), n_reference, limit)
            yield _Reply(reply.number, self._encoder.words(reply.ids), reply.nll, turns[reply.number], cut)

    def _label_replies(
        self, backend: InferenceBackend, requests: Sequence[AnswerRequest], slots: Sequence[int], _metrics: Sequence[str]
    ) -> Iterator[_Reply]:
        """Yield every request's likeliest label and the likelihoods of all; nothing is generated.

        Raises:
            BadData: there are no labels, or a reference is none of them.
        """
        if unknown := next((r.item for r in requests if r.item.reference not in self._labels), None):
            n_labels = len(self._labels)
            raise BadData(f"item {unknown.id!r} is answered with {unknown.reference!r}, none of the {n_labels} labels; check data.labels")
        prompts = [request.item.messages for request in requests]
        for number, scores in score_labels(backend, self._encoder, prompts, slots, self._labels, batch_size=self._batch_size):
            nll = scores.mean_nll(requests[number].item.reference)
            yield _Reply(number, scores.likeliest, nll, scores.turns[0], label_probabilities=scores.probabilities)

    def _scored_if_it_fits(
        self, requests: Sequence[AnswerRequest], replies: Sequence[_Reply], metrics: Sequence[str]
    ) -> Sequence[Answer] | None:
        """Return the replies with their scores; None without memory for the embeddings that these take."""
        try:
            return self._scored(requests, replies, metrics)
        except (RuntimeError, MemoryError) as error:
            if not is_allocation_failure(error):
                raise
            log.warning("no memory to score answers while others are generated; they are scored afterwards")
            return None
