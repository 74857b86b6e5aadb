"""Evaluation rows as arrays, after a check that all methods answered the same items."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
from jaxtyping import Float, Int

from clusterlora.errors import BadData
from clusterlora.evaluation.dialogues import dialogue_numbers
from clusterlora.values import EvaluationRow

ItemKey = tuple[str, str]
"""(persona id, item id)."""


@dataclass(frozen=True, slots=True, eq=False)
class PairedScores:
    """Scores of all methods on the same items, training seeds averaged; personas sorted by id, the items of a persona adjacent.

    `dialogue` numbers each persona's dialogues from 0: items of one dialogue depend on each other.
    `by_seed` has the scores of each training seed. A method without training has the same score under every seed; a missing seed is
    NaN. `shared` numbers, by method and training, the people by the adapters that some of them share: equal numbers share the same.
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    persona_ids: tuple[str, ...]
    persona: Int[np.ndarray, " item"]
    dialogue: Int[np.ndarray, " item"]
    cluster_of_persona: Int[np.ndarray, " persona"]
    values: Float[np.ndarray, "item method metric"]
    by_seed: Float[np.ndarray, "item method metric seed"]
    shared: Mapping[str, tuple[Int[np.ndarray, " persona"], ...]]
    n_personas_left_out: int

    def of(self, metric: str) -> Float[np.ndarray, "item method"]:
        """Return one metric's scores."""
        return self.values[:, :, self.metrics.index(metric)]

    @property
    def n_items(self) -> Int[np.ndarray, " persona"]:
        """Items of each persona."""
        return np.bincount(self.persona)

    def persona_means(self, metric: str) -> Float[np.ndarray, "persona method"]:
        """Return each persona's mean over its items."""
        return self.means_of(self.of(metric))

    def persona_means_by_seed(self, metric: str) -> Float[np.ndarray, "persona method seed"]:
        """Return each persona's mean over its items under each training seed."""
        values = self.by_seed[:, :, self.metrics.index(metric)]
        return self.means_of(values.reshape(len(values), -1)).reshape(len(self.persona_ids), len(self.methods), -1)

    def means_of(self, values: Float[np.ndarray, "item column"]) -> Float[np.ndarray, "persona column"]:
        """Return each persona's mean of values with a row per item."""
        return np.add.reduceat(values, np.cumsum(self.n_items) - self.n_items, axis=0) / self.n_items[:, None]


def paired_scores(rows: Sequence[EvaluationRow], metrics: Sequence[str]) -> PairedScores:
    """Return the scores of the personas that every method answered.

    Raises:
        BadData: no rows, no common persona, an item that one method answered twice or not at all, a persona in two clusters,
            or a score that is missing or not finite.
    """
    rows_by_item_by_method: dict[str, dict[ItemKey, dict[int, EvaluationRow]]] = defaultdict(
        lambda: defaultdict[ItemKey, dict[int, EvaluationRow]](dict)
    )
    cluster_by_persona: dict[str, int] = {}
    for row in rows:
        by_seed = rows_by_item_by_method[row.method][row.persona_id, row.item_id]
        if row.seed in by_seed:
            raise BadData(
                f"method {row.method} answered item {row.item_id!r} of persona {row.persona_id!r} twice; keep one row per method and item"
            )
        by_seed[row.seed] = row
        if cluster_by_persona.setdefault(row.persona_id, row.cluster) != row.cluster:
            raise BadData(
                f"persona {row.persona_id!r} is in clusters {cluster_by_persona[row.persona_id]} and {row.cluster}; use one clustering"
            )
    if not rows:
        raise BadData("there are no evaluation rows to compare; evaluate at least one method")

    methods = tuple(sorted(rows_by_item_by_method))
    answered = [{persona_id for persona_id, _ in rows_by_item_by_method[method]} for method in methods]
    persona_ids = tuple(sorted(answered[0].intersection(*answered[1:])))
    if not persona_ids:
        raise BadData(f"no persona was answered by all of {', '.join(methods)}; evaluate them on common personas or compare fewer methods")
    items = _common_items(rows_by_item_by_method, set(persona_ids))
    seeds = sorted({row.seed for row in rows})
    index_of_persona = {persona_id: index for index, persona_id in enumerate(persona_ids)}
    return PairedScores(
        methods=methods,
        metrics=tuple(metrics),
        persona_ids=persona_ids,
        persona=np.array([index_of_persona[persona_id] for persona_id, _ in items]),
        dialogue=np.concatenate([dialogue_numbers([item_id for _, item_id in of_one]) for _, of_one in groupby(items, itemgetter(0))]),
        cluster_of_persona=np.array([cluster_by_persona[persona_id] for persona_id in persona_ids]),
        values=np.array([[_mean_scores(rows_by_item_by_method[method][item], metrics) for method in methods] for item in items]),
        by_seed=np.array([[_scores_by_seed(rows_by_item_by_method[method][item], metrics, seeds) for method in methods] for item in items]),
        shared=_shared_adapters(rows, persona_ids),
        n_personas_left_out=len(cluster_by_persona) - len(persona_ids),
    )


def _shared_adapters(rows: Sequence[EvaluationRow], persona_ids: Sequence[str]) -> dict[str, tuple[Int[np.ndarray, " persona"], ...]]:
    """Return, by method, a number per persona for every training: people with the same number share adapters.

    What one person alone may be answered by, or everybody, tells nobody from the others.
    """
    offered: dict[tuple[str, int], dict[str, tuple[str, ...]]] = defaultdict(dict)
    for row in rows:
        offered[row.method, row.seed][row.persona_id] = row.adapters
    shared: dict[str, tuple[Int[np.ndarray, " persona"], ...]] = defaultdict(tuple)
    for method, seed in sorted(offered):
        own = [offered[method, seed].get(persona_id, ()) for persona_id in persona_ids]
        n_people = Counter(name for names in own for name in set(names))
        labels = [tuple(name for name in names if 1 < n_people[name] < len(own)) or names for names in own]
        number = {label: at for at, label in enumerate(dict.fromkeys(labels))}
        shared[method] += (np.array([number[label] for label in labels]),)
    return dict(shared)


def _common_items(rows: Mapping[str, Mapping[ItemKey, Mapping[int, EvaluationRow]]], persona_ids: set[str]) -> list[ItemKey]:
    """Return the sorted items of the personas, after a check that every method has all of them."""
    items_by_method = {method: {key for key in answered if key[0] in persona_ids} for method, answered in rows.items()}
    every_item = sorted({key for items in items_by_method.values() for key in items})
    for method, items in items_by_method.items():
        if missing := [key for key in every_item if key not in items]:
            persona_id, item_id = missing[0]
            raise BadData(
                f"method {method} lacks {len(missing)} of {len(every_item)} items that others answered, first {item_id!r} of persona "
                f"{persona_id!r}; evaluate {method} on the same items"
            )
        if uneven := [key for key in every_item if rows[method][key].keys() != rows[method][every_item[0]].keys()]:
            persona_id, item_id = uneven[0]
            raise BadData(
                f"method {method} answered item {item_id!r} of persona {persona_id!r} with other training seeds than "
                f"{every_item[0][1]!r} of {every_item[0][0]!r}; evaluate {method} again"
            )
    return every_item


def _mean_scores(row_by_seed: Mapping[int, EvaluationRow], metrics: Sequence[str]) -> list[float]:
    of_seeds = [_scores(row, metrics) for row in row_by_seed.values()]
    return [sum(values) / len(of_seeds) for values in zip(*of_seeds, strict=True)]


def _scores_by_seed(row_by_seed: Mapping[int, EvaluationRow], metrics: Sequence[str], seeds: Sequence[int]) -> list[list[float]]:
    """Return, by metric, the score under each seed; a method with a single seed has the same score under all."""
    only_row = next(iter(row_by_seed.values())) if len(row_by_seed) == 1 else None
    of_seeds = [row_by_seed.get(seed, only_row) for seed in seeds]
    return [[row.scores[metric] if row else np.nan for row in of_seeds] for metric in metrics]


def _scores(row: EvaluationRow, metrics: Sequence[str]) -> list[float]:
    values = [row.scores.get(metric, np.nan) for metric in metrics]
    for metric, value in zip(metrics, values, strict=True):
        if not np.isfinite(value):
            score = f"{metric}={value}" if metric in row.scores else f"no {metric}"
            raise BadData(f"method {row.method} has {score} for item {row.item_id!r} of persona {row.persona_id!r}; evaluate it again")
    return values
