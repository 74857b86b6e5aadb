"""Values to database rows and back."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from clusterlora.stores.json_codec import from_json, to_json
from clusterlora.values import (
    AdapterComposition,
    AdapterSpec,
    Answer,
    Attempt,
    Clustering,
    Criterion,
    Dataset,
    Dialogue,
    LearningCurve,
    Persona,
    Route,
    TrainedAdapter,
    Turn,
    Verdict,
    digest,
)

Values = dict[str, Any]

_PLAIN_ADAPTER_FIELDS = ("key", "name", "steps", "train_tokens", "seconds", "n_bytes", "run_id", "uri", "weights_sha256")
_PLAIN_ATTEMPT_FIELDS = ("group", "number", "micro_batch", "state", "detail", "peak_memory_bytes")


def of_personas(study: str, dataset: Dataset) -> list[Values]:
    """Return the rows of `personas`."""
    return [{"study": study, "id": p.id, "position": i, "description": p.description} for i, p in enumerate(dataset.personas)]


def of_dialogues(study: str, dataset: Dataset) -> list[Values]:
    """Return the rows of `dialogues`; `position` is their order within a persona."""
    return [
        {
            "study": study,
            "persona_id": persona.id,
            "position": position,
            "id": dialogue.id,
            "split": dialogue.split,
            "turns": to_json(dialogue.turns),
            "context": to_json(dialogue.context),
        }
        for persona in dataset.personas
        for position, dialogue in enumerate(persona.dialogues)
    ]


def dataset(personas: Iterable[Any], dialogues: Iterable[Any]) -> Dataset:
    """Return the data set of rows sorted by position."""
    dialogues_by_persona: dict[str, list[Dialogue]] = {}

    # Many dialogues have the same context, and share it.
    @lru_cache(maxsize=4096)
    def context_of(text: str) -> tuple[tuple[str, str], ...]:
        return from_json(tuple[tuple[str, str], ...], text)

    for row in dialogues:
        turns, context = from_json(tuple[Turn, ...], row.turns), context_of(row.context)
        dialogues_by_persona.setdefault(row.persona_id, []).append(Dialogue(row.id, turns, context, row.split))
    return Dataset(tuple(Persona(row.id, row.description, tuple(dialogues_by_persona.get(row.id, ()))) for row in personas))


def of_clustering(study: str, value: Clustering) -> Values:
    """Return the row of `clusterings`."""
    return {
        "study": study,
        "algorithm": value.algorithm,
        "quality": to_json(value.quality),
        "map_2d": to_json(value.map_2d),
        "curve": to_json(value.curve),
    }


def of_members(study: str, value: Clustering) -> list[Values]:
    """Return the rows of `cluster_members`."""
    return [
        {"study": study, "cluster": k, "position": i, "persona_id": persona_id}
        for k, members in enumerate(value.members)
        for i, persona_id in enumerate(members)
    ]


def clustering(row: Any, members: Sequence[Any]) -> Clustering:
    """Return the clustering of a row and its members' rows, sorted by cluster and position."""
    n_clusters = 1 + max((m.cluster for m in members), default=-1)
    ids = tuple(tuple(m.persona_id for m in members if m.cluster == k) for k in range(n_clusters))
    quality, map_2d = from_json(tuple[tuple[str, float], ...], row.quality), from_json(tuple[tuple[str, float, float], ...], row.map_2d)
    return Clustering(row.algorithm, ids, quality, map_2d, from_json(tuple[tuple[int, float, float], ...], row.curve))


def of_adapter(value: TrainedAdapter) -> Values:
    """Return the row of `adapters`."""
    losses = {"first_loss": _null_for_nan(value.first_loss), "last_loss": _null_for_nan(value.last_loss)}
    return {"spec": to_json(value.spec), **losses, **{name: getattr(value, name) for name in _PLAIN_ADAPTER_FIELDS}}


def adapter(row: Any) -> TrainedAdapter:
    """Return the trained adapter of a row."""
    plain = {name: getattr(row, name) for name in _PLAIN_ADAPTER_FIELDS}
    losses = {"first_loss": _nan_for_null(row.first_loss), "last_loss": _nan_for_null(row.last_loss)}
    return TrainedAdapter(spec=from_json(AdapterSpec, row.spec), **losses, **plain)


def of_curve(key: str, value: LearningCurve) -> Values:
    """Return the row of `learning_curves`: every loss to six digits, the precision of float32."""
    return {"key": key, "split": value.split, "losses": to_json([float(f"{loss:.6g}") for loss in value.losses])}


def curve(row: Any) -> LearningCurve:
    """Return the learning curve of a row."""
    return LearningCurve(row.split, from_json(tuple[float, ...], row.losses))


def of_attempt(study: str, value: Attempt) -> Values:
    """Return the row of `attempts`."""
    return {"study": study, **{name: getattr(value, name) for name in _PLAIN_ATTEMPT_FIELDS}}


def attempt(row: Any) -> Attempt:
    """Return the attempt of a row."""
    return Attempt(**{name: getattr(row, name) for name in _PLAIN_ATTEMPT_FIELDS})


def answer_id(study: str, value: Answer) -> str:
    """Return the primary key of an answer: a 128-bit digest of everything that identifies it."""
    return digest([study, value.composition_key, value.persona_id, value.item_id], length=32)


def of_answer(study: str, row_id: str, value: Answer) -> Values:
    """Return the row of `answers`."""
    return {
        "id": row_id,
        "study": study,
        "composition_key": value.composition_key,
        "persona_id": value.persona_id,
        "item_id": value.item_id,
        "split": value.split,
        "text": value.text,
    }


def of_scores(row_id: str, value: Answer) -> list[Values]:
    """Return an answer's rows of `scores`."""
    return [{"answer_id": row_id, "metric": metric, "value": _null_for_nan(score)} for metric, score in value.scores]


def answer(row: Any, scores: Iterable[tuple[str, float]]) -> Answer:
    """Return the answer of a row, its scores sorted by metric."""
    return Answer(row.composition_key, row.item_id, row.persona_id, row.split, row.text, tuple(sorted(scores)))


def of_route(study: str, value: Route) -> Values:
    """Return the row of `routes`."""
    return {
        "study": study,
        "method": value.method,
        "persona_id": value.persona_id,
        "seed": value.seed,
        "composition": to_json(value.composition),
    }


def route(row: Any) -> Route:
    """Return the route of a row."""
    return Route(row.method, row.persona_id, from_json(AdapterComposition, row.composition), row.seed)


def of_verdict(study: str, position: int, value: Verdict) -> Values:
    """Return the row of `verdicts`."""
    return {
        "study": study,
        "rung": value.rung,
        "position": position,
        "adapter": value.adapter,
        "criteria": to_json(value.criteria),
        "n_personas": value.n_personas,
        "n_items": value.n_items,
        "notes": to_json(value.notes),
    }


def verdict(row: Any) -> Verdict:
    """Return the verdict of a row."""
    criteria, notes = from_json(tuple[Criterion, ...], row.criteria), from_json(tuple[str, ...], row.notes)
    return Verdict(row.rung, row.adapter, criteria, row.n_personas, row.n_items, notes)


def _null_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _nan_for_null(value: float | None) -> float:
    return math.nan if value is None else value
