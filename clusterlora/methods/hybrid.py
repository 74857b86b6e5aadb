"""Unified, frozen, plus a small residual per person, whose weight is chosen on the person's val items."""

from dataclasses import replace

from clusterlora.methods.method import StudyView, composition_of, unified_adapter
from clusterlora.values import AdapterComposition, AdapterSpec, MethodPlan, WeightedAdapter

RESIDUAL_RANK = 4
BETAS = (0.25, 0.5, 0.75, 1.0)
"""Weights of the residual to choose from. Zero, which is unified, is an arm as well, so a hybrid never loses to unified on val."""


def hybrid(view: StudyView) -> MethodPlan:
    """Return the plan with one arm per weight of the residual, unified first."""
    unified = unified_adapter(view)
    recipe = view.recipe_of("hybrid")
    # A recipe that was chosen for it may have another rank than the study's; the residual's then differs from its own as much.
    rank = max(1, round(RESIDUAL_RANK * recipe.rank / view.recipe.rank))
    recipe = replace(recipe, rank=rank, alpha=recipe.alpha * rank / recipe.rank)
    residuals = [
        AdapterSpec(
            name=f"residual-{number:04d}",
            persona_ids=(persona_id,),
            recipe=recipe,
            scope="person",
            folder="residuals",
            frozen_adapter=unified.name,
        )
        for number, persona_id in enumerate(view.persona_ids)
    ]

    def arms(residual: AdapterSpec) -> tuple[AdapterComposition, ...]:
        return (
            composition_of(unified),
            *(AdapterComposition((WeightedAdapter(unified.name), WeightedAdapter(residual.name, beta))) for beta in BETAS),
        )

    return MethodPlan("hybrid", (unified, *residuals), tuple((r.persona_ids[0], arms(r)) for r in residuals))
