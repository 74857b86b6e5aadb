"""One adapter per cluster of personas, trained on its members."""

from clusterlora.methods.method import StudyView, stack_of, unified_adapter
from clusterlora.values import AdapterSpec, MethodPlan


def cluster_name(number: int) -> str:
    """Return the name of a cluster's adapter, cluster-00 for the first."""
    return f"cluster-{number:02d}"


def cluster(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with their cluster's adapter."""
    adapters = tuple(
        AdapterSpec(name=cluster_name(number), persona_ids=ids, recipe=view.cluster_recipe, init=view.cluster_init)
        for number, ids in enumerate(view.members)
    )
    route = tuple((p, (stack_of(adapter),)) for adapter in adapters for p in adapter.persona_ids)
    warm_start = (unified_adapter(view),) if view.cluster_init == "unified" else ()
    return MethodPlan("cluster", (*warm_start, *adapters), route)
