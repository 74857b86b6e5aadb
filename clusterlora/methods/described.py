"""Controls: the base and unified with the persona's description in the prompt. Their gain is what a prompt achieves without weights."""

from dataclasses import replace

from clusterlora.methods.method import StudyView, unified_adapter
from clusterlora.values import AdapterComposition, MethodPlan, WeightedAdapter

DESCRIBED = ("baseline_described", "unified_described")
"""The methods whose prompts show the persona's description, whatever the study does."""


def baseline_described(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with the base, with their description in the prompt."""
    return MethodPlan("baseline_described", (), tuple((p, (AdapterComposition(persona_in_prompt=True),)) for p in view.persona_ids))


def unified_described(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with a unified adapter that has the description in its prompts, in training as well."""
    adapter = replace(unified_adapter(view), name="unified-described", persona_in_prompt=True)
    composition = AdapterComposition((WeightedAdapter(adapter.name),), persona_in_prompt=True)
    return MethodPlan("unified_described", (adapter,), tuple((p, (composition,)) for p in view.persona_ids))
