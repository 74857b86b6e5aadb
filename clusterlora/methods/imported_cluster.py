"""The clusters' adapters that were trained elsewhere and brought in; where there is none, the one trained here."""

from clusterlora.methods.cluster import cluster
from clusterlora.methods.method import StudyView, composition_of
from clusterlora.values import AdapterSpec, MethodPlan


def imported_cluster(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with their cluster's imported adapter, as far as there is one."""
    here = view.others.get("cluster") or cluster(view)
    adapters = {
        number: AdapterSpec(
            name=f"imported-{number:02d}",
            persona_ids=view.members[number],
            recipe=view.recipe,
            scope="cluster",
            cluster=number,
            folder="imported_clusters",
            imported=weights,
        )
        for number, weights in view.imported
    }
    brought = {p: composition_of(adapter) for adapter in adapters.values() for p in adapter.persona_ids}
    route = tuple((p, (brought[p],) if p in brought else compositions) for p, compositions in here.arms_by_persona)
    answering = {name for _, compositions in route for composition in compositions for name in composition.adapter_names}
    needed = answering | {name for spec in here.adapters if spec.name in answering for name in spec.needs}
    return MethodPlan("imported_cluster", (*adapters.values(), *(spec for spec in here.adapters if spec.name in needed)), route)
