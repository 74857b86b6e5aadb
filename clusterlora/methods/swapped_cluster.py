"""Control of `cluster`: everybody is answered by another cluster's adapter. Nothing more is trained, only answered.

What cluster gains over it is due to whose cluster's adapter answers. It says nothing of why there are clusters: a random partition does.
"""

import random
from dataclasses import replace

from clusterlora.methods.cluster import cluster
from clusterlora.methods.method import StudyView, composition_of
from clusterlora.values import MethodPlan


def swapped_cluster(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with the adapter of the next cluster in a random circle, another one for every seed."""
    # The study's own plan names adapters by the rung that they were trained for.
    plan = view.others.get("cluster") or cluster(view)
    circle = [adapter for adapter in plan.adapters if adapter.cluster is not None]
    random.Random(view.cluster_recipe.seed).shuffle(circle)
    by_persona = {p: other for own, other in zip(circle, (*circle[1:], *circle[:1]), strict=True) for p in own.persona_ids}
    return replace(plan, method="swapped_cluster", arms_by_persona=tuple((p, (composition_of(by_persona[p]),)) for p in view.persona_ids))
