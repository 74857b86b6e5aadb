"""Controls: the base and unified with the persona's text in the prompt. What they gain, words can say and need no personal weights."""

from dataclasses import replace

from clusterlora.methods.method import StudyView, unified_adapter
from clusterlora.values import Layer, MethodPlan, Stack


def baseline_described(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with the base, told who asks."""
    return MethodPlan("baseline_described", (), tuple((p, (Stack(described=True),)) for p in view.persona_ids))


def unified_described(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with a unified adapter that learned, and is told, who asks."""
    adapter = replace(unified_adapter(view), name="unified-described", described=True)
    stack = Stack((Layer(adapter.name),), described=True)
    return MethodPlan("unified_described", (adapter,), tuple((p, (stack,)) for p in view.persona_ids))
