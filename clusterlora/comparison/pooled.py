"""Metrics that are no mean over items, such as macro F1: one value per method, of all compared items together."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from clusterlora.evaluation.metrics import METRICS
from clusterlora.values import EvaluationRow


def pooled_values(rows: Sequence[EvaluationRow], persona_ids: AbstractSet[str], metrics: Sequence[str]) -> dict[str, Mapping[str, float]]:
    """Return by method the values of those of these metrics that are pooled, averaged over training seeds.

    Every persona has the same weight, as it has in means; an item has that of its persona over the persona's number of items.
    """
    pooled = [METRICS[name] for name in metrics if name in METRICS and METRICS[name].pooled is not None]
    runs: dict[tuple[str, int], list[EvaluationRow]] = defaultdict(list)
    for row in rows if pooled else ():
        if row.persona_id in persona_ids:
            runs[row.method, row.seed].append(row)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict[str, list[float]](list))
    for (method, _), of_run in runs.items():
        n_items = Counter(row.persona_id for row in of_run)
        weights = np.array([1 / n_items[row.persona_id] for row in of_run]) / len(n_items)
        answers, references = [row.text for row in of_run], [row.reference for row in of_run]
        for metric in pooled:
            assert metric.pooled is not None, metric
            scores = np.array([row.scores[metric.name] for row in of_run])
            values[method][metric.name].append(metric.pooled(answers, references, scores, weights))
    return {method: {name: float(np.mean(of_seeds)) for name, of_seeds in by_name.items()} for method, by_name in values.items()}
