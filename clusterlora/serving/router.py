"""Answer the requests of many people in one batch, each with the composition of adapters that the study chose for them."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from clusterlora.adapters.compositions import combined_weights
from clusterlora.adapters.held import HeldAdapters
from clusterlora.chat.messages import read_message
from clusterlora.data.prompts import prompt_encoder, with_system
from clusterlora.data.retrieval import ExchangeIndex, with_shots
from clusterlora.engine.base import BaseModel
from clusterlora.engine.generation import Question
from clusterlora.engine.inference_backends import InferenceBackend, inference_backend
from clusterlora.engine.memory import BatchSize
from clusterlora.engine.stacked import Weights
from clusterlora.errors import BadData, ModelUnavailable
from clusterlora.evaluation.label_scores import score_labels
from clusterlora.models.base import load_base
from clusterlora.models.device import usual_device
from clusterlora.models.embedding import load_embedder
from clusterlora.models.revision import is_same_base
from clusterlora.ports.embedder import Embedder
from clusterlora.serving import MOST_RESIDENT
from clusterlora.stores.routing_table import KeyedAdapter, KeyedComposition, RoutingTable, read_routing_table
from clusterlora.values import Ranking, Turn, WeightedAdapter

_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as a question to the router's backend, who answers it, and whether its persona is in the study.

    A model of a single adapter answers everybody alike: it knows everybody.
    """

    question: Question
    answered_by: str
    is_known: bool


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the persona, the dialogue so far, the context both sides can see, and the maximum length of the answer."""

    persona_id: str
    turns: tuple[Turn, ...]
    context: tuple[tuple[str, str], ...] = ()
    max_new_tokens: int | None = None


class Router:
    """A base model with the compositions of a routing table; it answers exactly as the study's evaluation did.

    Where there are more than are to be in memory, the one that was asked for least recently makes room for the next.
    """

    def __init__(
        self,
        table: RoutingTable,
        adapters: HeldAdapters,
        *,
        device: str = "cpu",
        base: BaseModel | None = None,
        n_resident: int = MOST_RESIDENT,
    ) -> None:
        """Load the base model, unless it is given, and see that all adapters fit it.

        Args:
            n_resident: compositions that are in memory at once, more only if more are asked for together.

        Raises:
            ModelUnavailable: the base model is not available here, or has other weights than the adapters were trained on.
            BadData: an adapter is missing, differs from what was recorded, or does not fit the base.
        """
        if missing := sorted(table.keys - adapters.keys):
            raise BadData(f"the routes of study {table.study!r} name adapters that are not among the model's files: {', '.join(missing)}")
        self._table = table
        model = table.model
        self._base = base or load_base(
            model.base, dtype=model.dtype, device=device, quantisation=model.quantisation, device_map=model.device_map
        )
        if not is_same_base(table.base_revision, self._base.revision):
            raise ModelUnavailable(
                f"base model {table.model.base!r} here has revision {self._base.revision}, the adapters of study {table.study!r} were "
                f"trained on {table.base_revision}; install that one"
            )
        self._encoder = prompt_encoder(self._base.tokenizer, table.model, remember=False)
        compositions = sorted({c.adapters for c in (table.default, *table.personas.values()) if c.adapters}, key=str)
        # Slot 0 is the base model: no adapters.
        self._slot_by_adapters: dict[tuple[KeyedAdapter, ...], int] = {(): 0} | {c: slot for slot, c in enumerate(compositions, start=1)}
        # Kept: folders that PEFT reads while it answers are there as long as this is.
        self._adapters = adapters
        weights = _Compositions(compositions, adapters, table.weights_sha256)
        self._backend = inference_backend(self._base, weights if len(weights) > n_resident else list(weights), n_resident=n_resident)
        self._indices: dict[tuple[tuple[str, ...], Ranking], ExchangeIndex] = {}
        self._one_at_a_time = threading.Lock()

    @classmethod
    def load(cls, routes: Path, adapters: Path) -> "Router":
        """Return the router of a registered model, from its routes.json and the folder of its adapters; on a GPU if there is one."""
        table = read_routing_table(routes.read_text(encoding="utf-8"))
        return cls(table, HeldAdapters.of_model(adapters), device=usual_device())

    def answer(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
        """Return `{persona_id, text, answered_by}` per request, in order.

        A persona that is not in the study is answered by the default composition, and `answered_by` says so.

        Args:
            requests: mappings with `persona_id`, `messages` ([{role, content}], the last one the user's), and optionally `context`
                (what both sides can see, as in the training data) and `max_new_tokens`.

        Raises:
            BadData: a field of a request is missing or malformed; names the request's number and the field.
        """
        parsed = [read_request(number, request) for number, request in enumerate(requests)]
        longest = self._table.max_new_tokens
        limits = [longest if r.max_new_tokens is None else min(longest, r.max_new_tokens) for r in parsed]
        prepared = [self.prepare(request) for request in parsed]
        texts = self._labels(parsed) if self._table.labels else self._generated(prepared, limits)
        return [
            {"persona_id": request.persona_id, "text": text, "answered_by": self._explained(request, one)}
            for request, text, one in zip(parsed, texts, prepared, strict=True)
        ]

    def _generated(self, prepared: Sequence[Prepared], limits: Sequence[int]) -> list[str]:
        texts = [""] * len(prepared)
        questions = [one.question for one in prepared]
        with self._one_at_a_time:
            for reply in self._backend.reply(questions, max_new_tokens=max(limits, default=0), batch_size=_BATCH_SIZE):
                texts[reply.number] = self._encoder.words(reply.ids[: limits[reply.number]])
        return texts

    def _labels(self, requests: Sequence[Request]) -> list[str]:
        """Return the likeliest label for each request."""
        if not requests:
            return []
        prompts = [self._messages(request) for request in requests]
        slots = [self._slot_by_adapters[self._composition(request).adapters] for request in requests]
        size = BatchSize(_BATCH_SIZE, name="batch size")
        with self._one_at_a_time:
            scored = dict(score_labels(self._backend, self._encoder, prompts, slots, self._table.labels, batch_size=size))
        return [scored[number].likeliest for number in range(len(requests))]

    def prepare(self, request: Request) -> Prepared:
        """Return a request as a question, rendered as the study's prompts are. It may be called by one thread at a time.

        Raises:
            BadData: it is too long without any history.
            ModelUnavailable: the base's chat template refuses its turns.
        """
        slot = self._slot_by_adapters[self._composition(request).adapters]
        question = Question(self._encoder.encode_messages(self._messages(request)), slot, ())
        is_known = not self._table.personas or request.persona_id in self._table.personas
        return Prepared(question, self._answered_by(request), is_known)

    @property
    def table(self) -> RoutingTable:
        """Who is answered with what."""
        return self._table

    @property
    def base(self) -> BaseModel:
        """The base model."""
        return self._base

    @property
    def lead(self) -> tuple[int, ...]:
        """What is no part of an answer's words, as `PromptEncoder.lead`."""
        return self._encoder.lead

    @property
    def backend(self) -> InferenceBackend:
        """What answers the questions of `prepare`."""
        return self._backend

    def _messages(self, request: Request) -> tuple[Turn, ...]:
        composition, persona_id = self._composition(request), request.persona_id
        model = replace(self._table.model, persona_in_prompt=self._table.model.persona_in_prompt or composition.persona_in_prompt)
        turns = with_system(model, self._table.descriptions.get(persona_id), request.context, request.turns)
        return with_shots(turns, self._index(persona_id, composition), composition.shots) if composition.shots else turns

    def _index(self, persona_id: str, composition: KeyedComposition) -> ExchangeIndex:
        pool = self._table.mates.get(persona_id, (persona_id,)) if composition.shots_from == "cluster" else (persona_id,)
        if (pool, composition.ranking) not in self._indices:
            examples = [exchange for p in pool for exchange in self._table.exchanges.get(p, ())]
            embedder = self._embedder if composition.ranking == "embedding" else None
            self._indices[pool, composition.ranking] = ExchangeIndex(examples, composition.ranking, embedder)
        return self._indices[pool, composition.ranking]

    @cached_property
    def _embedder(self) -> Embedder:
        return load_embedder(self._table.model.embedding)

    def _composition(self, request: Request) -> KeyedComposition:
        return self._table.personas.get(request.persona_id, self._table.default)

    def _answered_by(self, request: Request) -> str:
        names = [
            self._table.names.get(adapter.key, adapter.key) + ("" if adapter.weight == 1.0 else f" x {adapter.weight:g}")
            for adapter in self._composition(request).adapters
        ]
        name = " + ".join(names) or "base model"
        if shots := self._composition(request).shots:
            whose = "persona's" if self._composition(request).shots_from == "own" else "cluster's"
            name += f" with {shots} of the {whose} exchanges"
        return name

    def _explained(self, request: Request, prepared: Prepared) -> str:
        if prepared.is_known:
            return prepared.answered_by
        return f"{prepared.answered_by} (default: persona {request.persona_id!r} is not in study {self._table.study!r})"


def read_request(number: int, request: Mapping[str, Any]) -> Request:
    """Return the request that a mapping describes. Raises BadData naming its number and field."""
    persona_id, messages = request.get("persona_id"), request.get("messages")
    if not isinstance(persona_id, str):
        raise BadData(f"request {number}: persona_id is {persona_id!r}; give the persona's id as text")
    # In a row of a DataFrame, messages may be an array.
    turns = tuple(_turn(number, m) for m in (messages if messages is not None and not isinstance(messages, str | Mapping) else ()))
    if not turns or turns[-1].role != "user":
        raise BadData(f"request {number}: messages must be a list of {{role, content}} that ends with the user's; got {messages!r:.200}")
    limit = request.get("max_new_tokens")
    # In a row of a DataFrame, a missing value is NaN.
    if limit is not None and not math.isnan(limit) and limit < 1:
        raise BadData(f"request {number}: max_new_tokens is {limit!r}; give a whole number from 1, or leave it out")
    context = request.get("context")
    pairs = tuple((str(k), str(v)) for k, v in context.items()) if isinstance(context, Mapping) else ()
    return Request(persona_id, turns, pairs, None if limit is None or math.isnan(limit) else int(limit))


def _turn(number: int, message: Any) -> Turn:
    try:
        return read_message(message)
    except BadData as problem:
        raise BadData(f"request {number}: message {problem}") from problem


class _Compositions(Sequence[Weights]):
    """Compositions, each read from the files of its adapters when it is asked for."""

    def __init__(self, compositions: Sequence[Sequence[KeyedAdapter]], adapters: HeldAdapters, sha256_by_key: Mapping[str, str]) -> None:
        self._compositions, self._adapters, self._sha256_by_key = compositions, adapters, sha256_by_key

    def __len__(self) -> int:
        return len(self._compositions)

    @overload
    def __getitem__(self, index: int) -> Weights: ...
    @overload
    def __getitem__(self, index: slice) -> "Sequence[Weights]": ...
    def __getitem__(self, index: int | slice) -> "Weights | Sequence[Weights]":
        if isinstance(index, slice):
            return _Compositions(self._compositions[index], self._adapters, self._sha256_by_key)
        weighted = [WeightedAdapter(adapter.key, adapter.weight) for adapter in self._compositions[index]]
        return combined_weights(weighted, lambda key: self._adapters.weights(key, self._sha256_by_key.get(key)))
