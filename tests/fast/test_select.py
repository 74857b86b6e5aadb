"""Selection among arms: the false selection rate does not grow with their number."""

import numpy as np
import pytest
from scipy import stats

from clusterlora.evaluation.select import margin_for, select_arm


def leaves(n_arms: int, rng: np.random.Generator, *, n_items: int = 10, draws: int = 3000) -> float:
    """Return how often another arm is chosen where all are alike: items differ, and every arm answers each by luck."""
    chosen = 0
    for _ in range(draws):
        items = rng.normal(2.0, 0.5, n_items)
        chosen += select_arm([items + rng.normal(0, 0.2, n_items) for _ in range(n_arms + 1)], higher_is_better=False, margin_se=1.0) > 0
    return chosen / draws


@pytest.mark.whole
def test_many_arms_that_are_all_alike_are_left_for_no_oftener_than_one() -> None:
    rng = np.random.default_rng(5)
    alone, four, eleven = (leaves(n_arms, rng) for n_arms in (1, 4, 11))
    assert alone == pytest.approx(stats.t.sf(1, 9), abs=0.03)
    assert four <= alone + 0.03
    assert eleven <= alone + 0.03, "one standard error for each of eleven is exceeded by one of them in more than half of the draws"


def test_one_arm_is_asked_for_the_margin_itself_and_several_for_one_that_any_exceeds_as_seldom() -> None:
    assert margin_for(1, 10, 1.0) == 1.0
    for n_arms in (2, 5, 11):
        margin = margin_for(n_arms, 10, 1.0)
        assert 1 - (1 - stats.t.sf(margin, 9)) ** n_arms == pytest.approx(stats.t.sf(1, 9))
    assert 1.0 < margin_for(2, 10, 1.0) < margin_for(11, 10, 1.0) < margin_for(11, 3, 1.0)


def test_an_arm_that_is_clearly_better_is_found_among_many() -> None:
    rng = np.random.default_rng(6)
    arms = [rng.normal(2.0, 0.1, 10) for _ in range(12)]
    assert select_arm([*arms[:5], arms[5] - 0.5, *arms[6:]], higher_is_better=False, margin_se=1.0) == 5
