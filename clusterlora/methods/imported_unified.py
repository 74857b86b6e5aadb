"""An imported adapter for everybody, trained elsewhere."""

from clusterlora.errors import BadSettings
from clusterlora.methods.method import StudyView, composition_of
from clusterlora.values import AdapterSpec, MethodPlan


def imported_unified(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with the imported unified adapter. Raises BadSettings when there is none."""
    if view.imported.unified_weights is None:
        raise BadSettings(
            "method imported_unified needs a unified adapter from elsewhere; run: clusterlora study import --unified FOLDER ..."
        )
    adapter = AdapterSpec(
        name="imported-unified",
        persona_ids=view.persona_ids,
        recipe=view.recipe,
        scope="everybody",
        imported=view.imported.unified_weights,
    )
    return MethodPlan("imported_unified", (adapter,), tuple((p, (composition_of(adapter),)) for p in view.persona_ids))
