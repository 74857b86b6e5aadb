"""Control of `cluster`: one adapter per random group of people, in groups as large as the clusters.

It differs from `cluster` only in who is grouped with whom. Its gain over unified is due to smaller groups; the gain of `cluster` over it
is due to grouping similar people.
"""

import random

from clusterlora.methods.cluster import adapter_per_group
from clusterlora.methods.method import StudyView
from clusterlora.values import MethodPlan


def random_cluster(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with their random group's adapter; every training seed draws other groups."""
    drawn = sorted(view.persona_ids)
    random.Random(view.recipe.seed).shuffle(drawn)
    groups: list[tuple[str, tuple[str, ...]]] = []
    for number, members in enumerate(view.members):
        group, drawn = drawn[: len(members)], drawn[len(members) :]
        groups.append((f"random-{number:02d}", tuple(sorted(group))))
    return adapter_per_group(view, "random_cluster", groups, folder="random_clusters")
