"""One adapter trained on everyone."""

from clusterlora.methods.method import StudyView, composition_of, unified_adapter
from clusterlora.values import MethodPlan


def unified(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with the same adapter."""
    adapter = unified_adapter(view)
    return MethodPlan("unified", (adapter,), tuple((p, (composition_of(adapter),)) for p in view.persona_ids))
