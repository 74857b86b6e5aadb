"""Imported adapters of clusters, trained elsewhere; a cluster without one is answered by the adapter trained in this study."""

from clusterlora.errors import BadSettings
from clusterlora.methods.cluster import cluster
from clusterlora.methods.method import StudyView, composition_of
from clusterlora.values import AdapterSpec, MethodPlan


def imported_cluster(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with their cluster's imported adapter where there is one.

    Raises:
        BadSettings: there is none at all.
    """
    if not view.imported.weights_by_cluster:
        raise BadSettings("method imported_cluster needs adapters from elsewhere; run: clusterlora study import --adapters FOLDER ...")
    own = view.others.get("cluster") or cluster(view)
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
        for number, weights in view.imported.weights_by_cluster
    }
    imported = {p: composition_of(adapter) for adapter in adapters.values() for p in adapter.persona_ids}
    route = tuple((p, (imported[p],) if p in imported else compositions) for p, compositions in own.arms_by_persona)
    answering = {name for _, compositions in route for composition in compositions for name in composition.adapter_names}
    needed = answering | {name for spec in own.adapters if spec.name in answering for name in spec.needs}
    return MethodPlan("imported_cluster", (*adapters.values(), *(spec for spec in own.adapters if spec.name in needed)), route)
