"""Control: unified, trained as many steps as unified and all clusters together: what the clusters' training cost buys without clusters."""

from dataclasses import replace

from clusterlora.methods.method import StudyView, composition_of, unified_adapter
from clusterlora.values import MethodPlan


def unified_longer(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with a unified adapter of more epochs."""
    recipe = view.recipe_of("unified")
    recipe = replace(recipe, epochs=recipe.epochs + view.cluster_recipe.epochs)
    adapter = replace(unified_adapter(view), name="unified-longer", recipe=recipe)
    return MethodPlan("unified_longer", (adapter,), tuple((p, (composition_of(adapter),)) for p in view.persona_ids))
