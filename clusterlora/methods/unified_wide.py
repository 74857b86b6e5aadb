"""Control: unified with as many parameters as the adapters of all clusters together: what capacity alone buys."""

from dataclasses import replace

from clusterlora.errors import BadSettings
from clusterlora.methods.method import StudyView, composition_of, unified_adapter
from clusterlora.recipe import MOST_RANK
from clusterlora.values import MethodPlan


def unified_wide(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with a unified adapter of the rank of all clusters together, its update scaled as before.

    Raises:
        BadSettings: so large a rank is more than an adapter may have.
    """
    recipe, of_one, n_clusters = view.recipe_of("unified"), view.cluster_recipe.rank, len(view.members)
    rank = of_one * n_clusters
    if rank > MOST_RANK:
        raise BadSettings(
            f"method unified_wide: {n_clusters} clusters of rank {of_one} have more than the rank of {MOST_RANK} that one adapter may "
            "have; lower recipe.rank or clustering.k, or leave the method out"
        )
    times = rank / recipe.rank
    # The update is scaled by alpha / r, in rslora by alpha / sqrt(r).
    recipe = replace(recipe, rank=rank, alpha=recipe.alpha * (times**0.5 if recipe.kind == "rslora" else times))
    adapter = replace(unified_adapter(view), name="unified-wide", recipe=recipe)
    return MethodPlan("unified_wide", (adapter,), tuple((p, (composition_of(adapter),)) for p in view.persona_ids))
