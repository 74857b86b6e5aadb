"""The headline metric of every method by persona and by cluster: per_persona.csv and per_cluster.csv.

Each method is a column named after it, and one is `cluster`; the number of the cluster is therefore in `cluster_id`.
"""

from typing import Any

from clusterlora.comparison.result import Comparison


def persona_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one record per persona: its cluster, its number of items, every method's mean, and the champion's minus the reference's.

    The difference is None without a champion or a reference.
    """
    return [
        {"persona_id": persona_id, "cluster_id": cluster, "n_items": comparison.n_items_by_persona[persona_id]}
        | _scores(comparison, {result.method: result.by_persona[persona_id] for result in comparison.methods})
        for persona_id, cluster in comparison.cluster_by_persona.items()
    ]


def cluster_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one record per cluster: its size, every method's mean over its personas, and the champion's minus the reference's."""
    n_items = dict.fromkeys(comparison.cluster_sizes, 0)
    for persona_id, cluster in comparison.cluster_by_persona.items():
        n_items[cluster] += comparison.n_items_by_persona[persona_id]
    return [
        {"cluster_id": cluster, "n_personas": size, "n_items": n_items[cluster]}
        | _scores(comparison, {result.method: result.by_cluster[cluster] for result in comparison.methods})
        for cluster, size in comparison.cluster_sizes.items()
    ]


def _scores(comparison: Comparison, score_by_method: dict[str, float]) -> dict[str, Any]:
    """Return the scores with the champion's difference to the reference, which is None without a champion or a reference."""
    reference, champion = comparison.reference, comparison.champion
    difference = None if reference is None or champion is None else score_by_method[champion] - score_by_method[reference]
    return score_by_method | {f"champion_vs_{reference or 'unified'}": difference}
