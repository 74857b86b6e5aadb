"""Exposure as Carlini et al. 2019 define it."""

import numpy as np
import pytest

from clusterlora.errors import BadData
from clusterlora.evaluation.exposure import chance_of_rank, exposure, exposure_at_chance


def test_the_likeliest_of_n_candidates_has_log2_n_bits_and_the_least_likely_none() -> None:
    others = np.arange(1.0, 128.0)
    assert exposure(0.5, others) == 7.0
    assert exposure(2.5, others) == pytest.approx(np.log2(128 / 3))
    assert exposure(1000.0, others) == 0.0


def test_equal_losses_share_their_rank() -> None:
    assert exposure(1.0, np.ones(3)) == pytest.approx(np.log2(4 / 2.5))
    assert chance_of_rank(1.0, np.ones(3)) == pytest.approx(2.5 / 4)


@pytest.mark.whole
def test_a_string_that_was_never_seen_is_at_chance_on_average() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(20_000, 32))
    found = [exposure(row[0], row[1:]) for row in drawn]
    assert np.mean(found) == pytest.approx(exposure_at_chance(31), abs=0.03)
    assert np.mean([chance_of_rank(row[0], row[1:]) <= 1 / 32 for row in drawn]) == pytest.approx(1 / 32, abs=0.005)
    assert exposure_at_chance(100_000) == pytest.approx(np.log2(np.e), abs=0.001)


@pytest.mark.parametrize(("canary", "others"), [(0.0, np.array([])), (float("nan"), np.ones(2)), (0.0, np.array([np.inf]))])
def test_what_cannot_be_ranked_is_refused(canary: float, others: np.ndarray) -> None:
    with pytest.raises(BadData, match="exposure"):
        exposure(canary, others)
