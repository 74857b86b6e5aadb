"""Per persona, whichever of the other methods did best on val; unified unless the gain exceeds one standard error,
and more where there are many arms to choose from."""

from clusterlora.methods.method import StudyView, composition_of, unified_adapter
from clusterlora.values import AdapterComposition, AdapterSpec, MethodPlan


def selective_routing(view: StudyView) -> MethodPlan:
    """Return the plan whose arms are those of all other methods, unified first.

    What is retrieved is chosen for the whole study; what a method with retrieval then answers a persona with is one more arm.
    """
    arms: dict[str, dict[AdapterComposition, None]] = {p: {composition_of(unified_adapter(view)): None} for p in view.persona_ids}
    adapters: dict[str, AdapterSpec] = {"unified": unified_adapter(view)}
    for plan in view.others.values():
        adapters |= {a.name: a for a in plan.adapters}
        for persona_id, compositions in () if plan.retrievals else plan.arms_by_persona:
            arms[persona_id] |= dict.fromkeys(compositions)
    routes = tuple((p, tuple(compositions)) for p, compositions in arms.items())
    retrieving = tuple(name for name, plan in view.others.items() if plan.retrievals)
    return MethodPlan("selective_routing", tuple(adapters.values()), routes, margin_se=1.0, arms_may_lack=True, arms_of=retrieving)
