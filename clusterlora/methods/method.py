"""What a method is given and what it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from clusterlora.settings import MergeSettings, Recipe
from clusterlora.values import AdapterComposition, AdapterSpec, MethodPlan, WeightedAdapter

BASE = AdapterComposition()
"""The base model alone."""

CONTROLS = ("random_cluster", "unified_longer", "baseline_described", "unified_described")
"""Methods that say where the gain of the others comes from; they are no arms to choose among."""


@dataclass(frozen=True, slots=True)
class StudyView:
    """All that a method may know: who there is, how they are grouped, how adapters are trained.

    `members[k]` are the personas of cluster k. `cluster_recipe` and `cluster_init` are those of the rung that passed the gate.
    `others` are the plans of the study's other methods, for methods that choose among them. `imported` are (cluster, hash of the
    weights) of adapters that were trained elsewhere and brought into the study.
    """

    persona_ids: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    recipe: Recipe
    cluster_recipe: Recipe
    cluster_init: str | None
    others: Mapping[str, MethodPlan]
    merging: MergeSettings
    imported: tuple[tuple[int, str], ...] = ()


Method = Callable[[StudyView], MethodPlan]


def composition_of(adapter: AdapterSpec) -> AdapterComposition:
    """Return the composition that is this adapter alone."""
    return AdapterComposition((WeightedAdapter(adapter.name),))


def unified_adapter(view: StudyView) -> AdapterSpec:
    """Return the adapter that learns from everyone."""
    return AdapterSpec(name="unified", persona_ids=view.persona_ids, recipe=view.recipe)
