"""The recipes that a study tries for every method alike: its own, and others spread evenly around it.

Source of the sequence: Sobol 1967, scrambled as by Owen 1998.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from clusterlora.clustering.choice import LARGEST_K
from clusterlora.metadata import TrialRecipe
from clusterlora.recipe import MOST_ALPHA, MOST_EPOCHS, MOST_LEARNING_RATE, MOST_RANK, Recipe
from clusterlora.settings import Study

T = TypeVar("T")

LEARNING_RATES = (0.25, 4.0)
EPOCHS = (0.5, 2.0)
SCALES = (0.5, 2.0)
"""Least and most of the peak learning rate, the epochs and alpha / r, as multiples of the study's own; evenly on a log scale."""
RANKS = (0.5, 1.0, 2.0, 4.0)
"""Multiples of the study's own rank."""
DROPOUTS = (0.0, 2.0)
"""Least and most dropout, as a multiple of the study's own: without any, none is tried."""
_MOST_DROPOUT = 0.5
_ATTENTION = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "query_key_value", "query", "key", "value", "c_attn"}
)
_DIMENSIONS = 7


def draw_recipes(study: Study, targets: Sequence[str]) -> tuple[TrialRecipe, ...]:
    """Return `study.tune` recipes, the study's own first; the same ones whenever they are drawn.

    Args:
        targets: the layers of the base that the study's recipe adapts.
    """
    from scipy.stats import qmc

    own, n = study.recipe, study.tune or 1
    attention = tuple(name for name in targets if name in _ATTENTION)
    choices = (own.target_modules, attention) if attention and len(attention) < len(targets) else (own.target_modules,)
    # A power of two of points is spread evenly; the study's own recipe takes the place of the last.
    points = qmc.Sobol(_DIMENSIONS, scramble=True, rng=own.seed).random_base2(math.ceil(math.log2(n)))[: n - 1]
    most_rank = _most_rank(study)
    drawn = [_recipe(own, point.tolist(), choices, most_rank) for point in points]
    return (TrialRecipe(own, study.cluster_init), *drawn)


def _recipe(own: Recipe, point: Sequence[float], targets: Sequence[tuple[str, ...]], most_rank: int) -> TrialRecipe:
    """Return the recipe at a point of the unit cube."""
    rate, epochs, rank, scale, dropout, target, init = point
    chosen_rank = max(1, min(round(own.rank * _of(RANKS, rank)), max(most_rank, own.rank)))
    low, high = DROPOUTS
    recipe = replace(
        own,
        learning_rate=min(_rounded(own.learning_rate * _between(LEARNING_RATES, rate)), MOST_LEARNING_RATE),
        epochs=min(max(1, round(own.epochs * _between(EPOCHS, epochs))), MOST_EPOCHS),
        rank=chosen_rank,
        alpha=min(_rounded(own.alpha / own.rank * _between(SCALES, scale) * chosen_rank), MOST_ALPHA),
        dropout=round(min(own.dropout * (low + dropout * (high - low)), max(own.dropout, _MOST_DROPOUT)), 3),
        target_modules=_of(targets, target),
    )
    return TrialRecipe(recipe, _of(("base", "unified"), init))


def _most_rank(study: Study) -> int:
    """Return the largest rank to try: `unified_wide` has it once per cluster in one adapter."""
    if "unified_wide" not in study.methods:
        return MOST_RANK
    return MOST_RANK // (study.clustering.k or len(study.clustering.sizes or ()) or LARGEST_K)


def _of(choices: Sequence[T], share: float) -> T:
    return choices[min(int(share * len(choices)), len(choices) - 1)]


def _between(limits: tuple[float, float], share: float) -> float:
    """Return the number at this share of the way between two limits, on a log scale."""
    low, high = limits
    return low * (high / low) ** share


def _rounded(value: float) -> float:
    """Return a number to two significant digits, which people can read and say."""
    return float(f"{value:.2g}")
