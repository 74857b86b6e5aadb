"""The base model with a few of the person's own exchanges in the prompt: what is possible without training."""

from clusterlora.methods.method import StudyView
from clusterlora.values import AdapterComposition, MethodPlan

SHOTS = 3


def few_shot(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with the base and their most similar train exchanges."""
    return MethodPlan("few_shot", (), tuple((p, (AdapterComposition(shots=SHOTS),)) for p in view.persona_ids))
