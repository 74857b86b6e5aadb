"""One adapter per cluster, made of its members' own adapters without training."""

from clusterlora.methods.method import StudyView, composition_of
from clusterlora.methods.per_persona import per_persona
from clusterlora.values import AdapterSpec, MethodPlan


def merge(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with their cluster's merge."""
    own = {adapter.persona_ids[0]: adapter for adapter in per_persona(view).adapters}
    merged = tuple(
        AdapterSpec(
            name=f"merged-{number:02d}",
            persona_ids=ids,
            recipe=view.recipe,
            scope="cluster",
            cluster=number,
            folder="merged_clusters",
            merge_of=tuple(own[persona_id].name for persona_id in ids),
            merging=view.merging,
        )
        for number, ids in enumerate(view.members)
    )
    return MethodPlan("merge", (*own.values(), *merged), tuple((p, (composition_of(a),)) for a in merged for p in a.persona_ids))
