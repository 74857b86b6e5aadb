"""One adapter per cluster of personas, trained on its members."""

from collections.abc import Sequence

from clusterlora.methods.method import StudyView, composition_of, unified_adapter
from clusterlora.values import AdapterSpec, MethodPlan


def cluster_name(number: int) -> str:
    """Return the name of a cluster's adapter, cluster-00 for the first."""
    return f"cluster-{number:02d}"


def cluster(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with their cluster's adapter."""
    groups = [(cluster_name(number), members) for number, members in enumerate(view.members)]
    return adapter_per_group(view, "cluster", groups, folder="lora_clusters")


def adapter_per_group(view: StudyView, method: str, groups: Sequence[tuple[str, tuple[str, ...]]], *, folder: str) -> MethodPlan:
    """Return the plan that answers everybody with their group's adapter, trained as the clusters' are: same recipe, same start.

    Args:
        groups: the name of each adapter with the personas it learns from and answers, one group per cluster.
        folder: subfolder of the study's `models/` for these adapters.
    """
    adapters = tuple(
        AdapterSpec(
            name=name,
            persona_ids=persona_ids,
            recipe=view.cluster_recipe,
            scope="cluster",
            cluster=number,
            folder=folder,
            init_from=view.cluster_init,
        )
        for number, (name, persona_ids) in enumerate(groups)
    )
    route = tuple((p, (composition_of(adapter),)) for adapter in adapters for p in adapter.persona_ids)
    warm_start = (unified_adapter(view),) if view.cluster_init == "unified" else ()
    return MethodPlan(method, (*warm_start, *adapters), route)
