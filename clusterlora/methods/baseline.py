"""The base model without adapters."""

from clusterlora.methods.method import BASE, StudyView
from clusterlora.values import MethodPlan


def baseline(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with the base alone."""
    return MethodPlan("baseline", (), tuple((p, (BASE,)) for p in view.persona_ids))
