"""Answers and scores for (composition, item) pairs: generate greedily, take the reference's likelihood, apply every metric."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clusterlora.data.prompts import prompt_encoder
from clusterlora.evaluation.generate import Question
from clusterlora.evaluation.inference_backends import InferenceBackend, inference_backend
from clusterlora.evaluation.metric import Scorable
from clusterlora.evaluation.metrics import METRICS
from clusterlora.evaluation.train_responses import TrainResponses
from clusterlora.models.base import BaseModel
from clusterlora.models.memory import is_allocation_failure
from clusterlora.models.stacked import Weights
from clusterlora.ports import Embedder, RunLog
from clusterlora.settings import EvaluationSettings, ModelSettings
from clusterlora.values import Answer, Item

log = logging.getLogger(__name__)

EMBEDDED_AT_ONCE = 256
"""Answers embedded together, as they come in: to embed them may take as long as to give them, and progress tells of both."""
ON_A_GPU = 4
"""A GPU answers so many times as many items at once in about the time of a few."""


@dataclass(frozen=True, slots=True)
class Task:
    """One item to be answered by one composition."""

    composition_key: str
    item: Item


class Answerer:
    """Answers items with any number of stacks of adapters at once. Metrics that ask what people were answered in training need `train`."""

    def __init__(
        self,
        base: BaseModel,
        embedder: Embedder,
        settings: EvaluationSettings,
        model: ModelSettings,
        *,
        train: TrainResponses | None = None,
    ) -> None:
        self._base = base
        self._embedder = embedder
        self._settings = settings
        self._train = train
        self._encoder = prompt_encoder(base.tokenizer, model)
        self._batch_size = settings.batch_size * (ON_A_GPU if base.model.device.type == "cuda" else 1)

    def answer(
        self, tasks: Sequence[Task], weights_by_composition: Mapping[str, Weights], *, metrics: Sequence[str], run_log: RunLog
    ) -> list[Answer]:
        """Return an answer per task, in order. Text is generated only when a metric reads it.

        When an allocation fails the batch is halved and tried again: every row is computed on its own, so scores stay the same.

        Raises:
            OutOfMemoryError and the like: a single row does not fit.
        """
        keys = sorted({task.composition_key for task in tasks})
        slot_by_key = {key: slot for slot, key in enumerate(keys, start=1)}
        backend = inference_backend(self._base, [weights_by_composition[key] for key in keys])
        turns = self._encoder.encode_turns([(task.item.messages, task.item.reference) for task in tasks])
        questions = [
            Question(turn.prompt, slot_by_key[task.composition_key], turn.response) for task, turn in zip(tasks, turns, strict=True)
        ]
        references = [task.item.reference for task in tasks]
        embedded = references if any(METRICS[name].embeds for name in metrics) else None
        try:
            while True:
                try:
                    texts, nll = self._run(backend, questions, embedded, generating=tuple(metrics) != ("nll",), run_log=run_log)
                    break
                except (RuntimeError, MemoryError) as error:
                    if not is_allocation_failure(error) or self._batch_size == 1:
                        raise
                    self._batch_size //= 2
                    log.warning("answering ran out of memory; going on with batches of %d", self._batch_size)
        finally:
            backend.close()
        scorable = Scorable(
            texts=texts,
            references=references,
            embedder=self._embedder,
            nll=nll,
            persona_ids=[task.item.persona_id for task in tasks],
            train=self._train,
            prompt_tokens=[len(question.prompt) for question in questions],
        )
        scores = {name: METRICS[name].score(scorable) for name in metrics}
        return [
            Answer(
                task.composition_key,
                task.item.id,
                task.item.persona_id,
                task.item.split,
                texts[number],
                tuple((name, float(values[number])) for name, values in scores.items()),
            )
            for number, task in enumerate(tasks)
        ]

    def _run(
        self, backend: InferenceBackend, questions: Sequence[Question], embedded: Sequence[str] | None, *, generating: bool, run_log: RunLog
    ) -> tuple[list[str], np.ndarray]:
        """Return every question's answer and likelihood; with `embedded`, their references, both are known to the embedder by then."""
        texts, nll = [""] * len(questions), np.zeros(len(questions))
        fresh: list[str] = []
        max_new_tokens = self._settings.max_new_tokens if generating else None
        for reply in backend.reply(questions, max_new_tokens=max_new_tokens, batch_size=self._batch_size):
            texts[reply.number] = str(self._base.tokenizer.decode(list(reply.ids), skip_special_tokens=True)).strip()
            nll[reply.number] = reply.nll
            if embedded is not None:
                fresh += texts[reply.number], embedded[reply.number]
                if len(fresh) >= 2 * EMBEDDED_AT_ONCE:
                    self._embedder.encode(fresh)
                    fresh.clear()
            run_log.advance(1)
        return texts, nll
