"""Control: one adapter per group of people thrown together by chance, in groups as large as the clusters.

What it gains over unified comes from smaller groups alone; what `cluster` gains over it comes from grouping people who are alike.
"""

import random

from clusterlora.methods.method import StudyView, stack_of
from clusterlora.values import AdapterSpec, MethodPlan


def random_cluster(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with their random group's adapter."""
    drawn = sorted(view.persona_ids)
    random.Random(view.recipe.seed).shuffle(drawn)
    adapters: list[AdapterSpec] = []
    for number, members in enumerate(view.members):
        ids, drawn = tuple(sorted(drawn[: len(members)])), drawn[len(members) :]
        adapters.append(AdapterSpec(name=f"random-{number:02d}", persona_ids=ids, recipe=view.cluster_recipe))
    return MethodPlan("random_cluster", tuple(adapters), tuple((p, (stack_of(a),)) for a in adapters for p in a.persona_ids))
