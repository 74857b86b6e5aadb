"""Unified, frozen, plus a residual per cluster of personas."""

from clusterlora.methods.method import StudyView, unified_adapter
from clusterlora.values import AdapterComposition, AdapterSpec, MethodPlan, WeightedAdapter


def cluster_hybrid(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with unified plus their cluster's residual."""
    unified = unified_adapter(view)
    residuals = tuple(
        AdapterSpec(
            name=f"cluster-residual-{number:02d}",
            persona_ids=ids,
            recipe=view.recipe_of("cluster_hybrid"),
            scope="cluster",
            cluster=number,
            folder="lora_clusters",
            frozen_adapter=unified.name,
        )
        for number, ids in enumerate(view.members)
    )
    route = tuple(
        (p, (AdapterComposition((WeightedAdapter(unified.name), WeightedAdapter(residual.name))),))
        for residual in residuals
        for p in residual.persona_ids
    )
    return MethodPlan("cluster_hybrid", (unified, *residuals), route)
