"""Imported adapters of single persons, trained elsewhere; a person without one is answered by the adapter trained in this study."""

from clusterlora.errors import BadSettings
from clusterlora.methods.method import StudyView, composition_of
from clusterlora.methods.per_persona import per_persona
from clusterlora.values import AdapterSpec, MethodPlan


def imported_per_persona(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with their imported adapter, or their own. Raises BadSettings when there is none."""
    imported = imported_personal_adapters(view)
    if not imported:
        raise BadSettings("method imported_per_persona needs adapters from elsewhere; run: clusterlora study import --personal FOLDER ...")
    own = {adapter.persona_ids[0]: adapter for adapter in per_persona(view).adapters}
    adapters = tuple(imported.get(p, own[p]) for p in view.persona_ids)
    return MethodPlan("imported_per_persona", adapters, tuple((a.persona_ids[0], (composition_of(a),)) for a in adapters))


def imported_personal_adapters(view: StudyView) -> dict[str, AdapterSpec]:
    """Return the imported adapters by persona; they are named by position, since ids are data and may hold anything."""
    weights = dict(view.imported.weights_by_persona)
    return {
        persona_id: AdapterSpec(
            name=f"imported-persona-{number:04d}",
            persona_ids=(persona_id,),
            recipe=view.recipe,
            scope="person",
            folder="imported_personas",
            imported=weights[persona_id],
        )
        for number, persona_id in enumerate(view.persona_ids)
        if persona_id in weights
    }
