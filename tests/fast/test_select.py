"""Selection among arms: the false selection rate does not grow with their number."""

import numpy as np
import pytest
from scipy import stats

from clusterlora.evaluation.dialogues import dialogue_means, dialogue_numbers
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


@pytest.mark.parametrize(("n_dialogues", "n_turns"), [(3, 4), (5, 2)])
def test_turns_of_a_dialogue_that_share_its_luck_make_nobody_leave_oftener(n_dialogues: int, n_turns: int) -> None:
    rng, draws = np.random.default_rng(8), 1500
    dialogue = np.repeat(np.arange(n_dialogues), n_turns)
    left = 0
    for _ in range(draws):
        # Both arms are alike: each has luck with a dialogue, which its turns share.
        arms = [rng.normal(0, 0.2, n_dialogues)[dialogue] + rng.normal(0, 0.1, len(dialogue)) for _ in range(2)]
        left += select_arm([dialogue_means(arm, dialogue) for arm in arms], higher_is_better=False, margin_se=1.0)
    # Four standard errors. With turns for units it would be .35 and .25.
    assert left / draws == pytest.approx(stats.t.sf(1, n_dialogues - 1), abs=4 * np.sqrt(0.2 * 0.8 / draws))


def test_items_are_averaged_by_their_dialogue() -> None:
    numbers = dialogue_numbers(["b#2", "b#4", "a#2", "a#x#2", "b#6", "alone"])
    assert numbers.tolist() == [0, 0, 1, 2, 0, 3]
    assert dialogue_means(np.array([1.0, 2.0, 5.0, 7.0, 6.0, 9.0]), numbers).tolist() == [3, 5, 7, 9]
    assert dialogue_means(np.array([[1.0, 0.0], [3.0, 8.0]]), np.array([0, 0])).tolist() == [[2, 4]]
    assert dialogue_means(np.zeros(0), dialogue_numbers([])).tolist() == []
