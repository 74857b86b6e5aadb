"""Unified and cluster adapters trained without some of the people, by which a study measures `clusterlora assign` on people new to them.

It is not a method of the comparison.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from clusterlora.methods.cluster import cluster_name
from clusterlora.methods.method import StudyView, composition_of, unified_adapter
from clusterlora.values import AdapterSpec, MethodPlan

HELD_OUT = "held_out"
_FOLDER = "held_out"


def held_out(view: StudyView, share: float, seed: int) -> MethodPlan | None:
    """Return the plan for the held-out people, with unified and every cluster as arms; None when no clusters have anybody to hold out."""
    if len(view.members) < 2:
        return None
    spared = {p for members in view.members for p in _spared(members, share, seed)}
    if not spared:
        return None
    kept = tuple(p for p in view.persona_ids if p not in spared)
    unified = replace(unified_adapter(view), name="heldout-unified", persona_ids=kept, folder=_FOLDER)
    clusters = tuple(
        AdapterSpec(
            name=f"heldout-{cluster_name(number)}",
            persona_ids=tuple(p for p in members if p not in spared),
            recipe=view.cluster_recipe,
            scope="cluster",
            cluster=number,
            folder=_FOLDER,
            init_from=unified.name if view.cluster_init else None,
        )
        for number, members in enumerate(view.members)
    )
    arms = tuple(composition_of(adapter) for adapter in (unified, *clusters))
    return MethodPlan(HELD_OUT, (unified, *clusters), tuple((p, arms) for p in view.persona_ids if p in spared))


def _spared(members: Sequence[str], share: float, seed: int) -> list[str]:
    """Return the members of a cluster to hold out: at least one but never all, by a hash of their ids that depends on no other member."""
    n_spared = min(len(members) - 1, max(1, round(share * len(members))))
    return sorted(members, key=lambda persona_id: hashlib.sha256(f"{seed}\x1f{persona_id}".encode()).hexdigest())[:n_spared]
