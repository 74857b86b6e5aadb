"""One prefix per person: trained keys and values prepended in every layer (prefix tuning, Li & Liang 2021, arXiv 2101.00190)."""

from dataclasses import replace

from clusterlora.methods.method import StudyView, composition_of
from clusterlora.values import AdapterSpec, MethodPlan

VIRTUAL_TOKENS = 20
LEARNING_RATE = 1e-2


def prefix(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with the base and their own prefix."""
    # A recipe that was chosen for it differs from the study's; rank and learning rate of a prefix differ from its own as much.
    own, recipe = view.recipe, view.recipe_of("prefix")
    recipe = replace(
        recipe,
        kind="prefix",
        rank=max(1, round(VIRTUAL_TOKENS * recipe.rank / own.rank)),
        learning_rate=LEARNING_RATE * (recipe.learning_rate / own.learning_rate),
        dropout=0.0,
    )
    adapters = tuple(
        AdapterSpec(name=f"prefix-{number:04d}", persona_ids=(persona_id,), recipe=recipe, scope="person", folder="prefixes")
        for number, persona_id in enumerate(view.persona_ids)
    )
    return MethodPlan("prefix", adapters, tuple((a.persona_ids[0], (composition_of(a),)) for a in adapters))
