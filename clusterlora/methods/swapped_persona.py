"""Control of `per_persona`: everybody is answered by somebody else's adapter. Nothing more is trained, only answered.

What per_persona gains over it is due to whose adapter answers; what it gains over unified may also be due to less training, or to fewer
people per adapter.
"""

import random

from clusterlora.methods.method import StudyView, composition_of
from clusterlora.methods.per_persona import per_persona
from clusterlora.values import MethodPlan


def swapped_persona(view: StudyView) -> MethodPlan:
    """Return the plan that answers everybody with the adapter of the next person in a random circle, another one for every seed."""
    adapters = per_persona(view).adapters
    circle = sorted(adapters, key=lambda adapter: adapter.persona_ids)
    random.Random(view.recipe.seed).shuffle(circle)
    by_persona = {own.persona_ids[0]: other for own, other in zip(circle, (*circle[1:], circle[0]), strict=True)}
    return MethodPlan("swapped_persona", adapters, tuple((p, (composition_of(by_persona[p]),)) for p in view.persona_ids))
