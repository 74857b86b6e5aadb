"""One adapter per cluster, made of its members' own adapters without training."""

from collections.abc import Mapping

from clusterlora.methods.method import StudyView, composition_of
from clusterlora.methods.per_persona import per_persona
from clusterlora.values import AdapterSpec, MethodPlan


def merge(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with their cluster's merge."""
    return merge_of_members(view, "merge", {adapter.persona_ids[0]: adapter for adapter in per_persona(view).adapters}, name="merged")


def merge_of_members(view: StudyView, method: str, personal: Mapping[str, AdapterSpec], *, name: str) -> MethodPlan:
    """Return the plan that answers every cluster with the merge of the personal adapters that its members have.

    Args:
        personal: adapters by persona; each cluster has a member with one.
        name: what the merged adapters are called, before the cluster's number.
    """
    merged = tuple(
        AdapterSpec(
            name=f"{name}-{number:02d}",
            persona_ids=ids,
            recipe=next(iter(personal.values())).recipe,
            scope="cluster",
            cluster=number,
            folder=f"{name}_clusters".replace("-", "_"),
            merge_of=tuple(personal[persona_id].name for persona_id in ids if persona_id in personal),
            merging=view.merging,
        )
        for number, ids in enumerate(view.members)
    )
    return MethodPlan(method, (*personal.values(), *merged), tuple((p, (composition_of(a),)) for a in merged for p in a.persona_ids))
