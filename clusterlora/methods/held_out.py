"""Unified and cluster adapters that never saw some of the people: what stands in for the study's own when people are to be new to it.

It answers nobody in the comparison; it is how a study measures `clusterlora assign`.
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
    """Return the plan whose people are those held out, with unified and every cluster as their arms; None when nobody can be spared."""
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
    """Return a cluster's share of the held out, at least one, and never all: in the order of a hash, whoever else there is."""
    n_spared = min(len(members) - 1, max(1, round(share * len(members))))
    return sorted(members, key=lambda persona_id: hashlib.sha256(f"{seed}\x1f{persona_id}".encode()).hexdigest())[:n_spared]
