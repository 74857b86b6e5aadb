"""One adapter per person, trained on that person alone."""

from clusterlora.methods.method import StudyView, composition_of
from clusterlora.values import AdapterSpec, MethodPlan


def per_persona(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with their own adapter."""
    recipe = view.recipe_of("per_persona")
    # Persona ids are data and may hold anything; adapters are named by position.
    adapters = tuple(
        AdapterSpec(name=f"persona-{number:04d}", persona_ids=(persona_id,), recipe=recipe, scope="person", folder="personas")
        for number, persona_id in enumerate(view.persona_ids)
    )
    return MethodPlan("per_persona", adapters, tuple((a.persona_ids[0], (composition_of(a),)) for a in adapters))
