"""The gate may ask that the judged cluster gains more than random people would, and says whether it can tell."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from clusterlora.config import resolve
from clusterlora.errors import BadSettings
from clusterlora.gate.criteria.above_random_group import above_random_group
from clusterlora.gate.criteria.above_unified import above_unified
from clusterlora.gate.judge import judge
from clusterlora.gate.power import WANTED_POWER, measured_power
from clusterlora.gate.random_group import against_random_group
from clusterlora.gate.trial import trial
from clusterlora.planning.gate_step import next_gate_step
from clusterlora.planning.training_groups import gate_groups
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.stores import Stores
from clusterlora.requests import EvaluationRequest
from clusterlora.settings import GateSettings, Rung, Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.judge import estimate_power, verdict_on
from clusterlora.stages.prepare import prepare_study
from tests.fixtures.stages import LOG, plan_of, run_gate, state_of

ASKED = GateSettings(above_random_group=True)
RNG = np.random.default_rng(0)


def sides(gain: float, *, n: int = 16, spread: float = 0.02, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return an adapter's and unified's scores of n people whose gains vary by `spread` around `gain`."""
    rng = np.random.default_rng(seed)
    unified = {f"p{seed}-{i}": rng.uniform(0.5, 0.7, 6) for i in range(n)}
    return {p: scores + gain + spread * rng.normal() for p, scores in unified.items()}, unified


def criteria(gain: float, of_group: float, settings: GateSettings = ASKED, **sample: Any) -> dict[str, bool]:
    candidate, group = sides(gain, **sample), sides(of_group, seed=1, **sample)
    verdict = judge(*candidate, settings, rung="own", adapter="cluster-00", rng=RNG, random_group=group)
    return {criterion.name: criterion.passed for criterion in verdict.criteria}


def test_a_cluster_that_gains_what_random_people_gain_is_refused_though_it_beats_unified() -> None:
    assert criteria(0.05, 0.05) == {"above_unified": True, "share_of_personas_improved": True, "above_random_group": False}
    assert criteria(0.05, 0.0)["above_random_group"]
    assert criteria(0.05, -0.05)["above_random_group"]


@pytest.mark.whole
def test_the_luck_of_one_adapter_against_one_meets_the_criterion_and_its_explanation_says_so() -> None:
    rng = np.random.default_rng(4)
    n_met = 0
    for seed in range(0, 300, 2):
        own, group = (sides(rng.normal(0, 0.03), spread=0.03, seed=one) for one in (seed, seed + 1))
        trials = replace(trial(*own), random_group=trial(*group))
        criterion = above_random_group(trials, ASKED, rng)
        n_met += criterion is not None and criterion.passed
        assert criterion is None or criterion.explanation.endswith("It does not know the luck of one adapter against one.")
    assert 40 < n_met < 60, "with the luck of people alone it would be 4 of 150"


def test_where_five_points_would_not_be_shown_it_is_not_asked_and_a_note_says_what_would_be() -> None:
    assert "above_random_group" not in criteria(0.05, 0.05, spread=0.2)
    assert "above_random_group" not in criteria(0.05, 0.05, n=1)
    assert "above_random_group" in criteria(0.05, 0.05, GateSettings())
    assert "above_random_group" not in criteria(0.05, 0.05, GateSettings(above_random_group=False))
    candidate, group = sides(0.05, spread=0.2), sides(0.05, seed=1, spread=0.2)
    (note,) = judge(*candidate, ASKED, rung="own", adapter="cluster-00", rng=RNG, random_group=group).notes
    assert note.startswith("With 16 personas in the cluster and 16 in the random group a true difference of ")
    assert "so the gate does not ask whether the cluster gains more than the group" in note


def gains_of(n: int, spread: float) -> dict[str, np.ndarray]:
    """Return gains of n people whose means vary by exactly `spread`, with hardly any noise of items."""
    means = np.resize([-1.0, 1.0], n) * spread * np.sqrt((n - 1) / n)
    return {str(p): np.array([mean, mean + 1e-9]) for p, mean in enumerate(means)}


@pytest.mark.parametrize("spread", [0.03, 0.06])
def test_the_power_of_a_gate_that_asks_the_group_is_that_of_the_gate_itself(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate asks nearly always where gains vary by 3 points, and where they vary by 6 only the unlikely times that they seem not to."""
    # Only the interval beside the gain needs draws, and it is not looked at here.
    monkeypatch.setattr(sys.modules[above_unified.__module__], "DRAWS", 10)
    power = measured_power(gains_of(16, spread), ASKED, np.random.default_rng(0), group_gains=gains_of(12, spread))
    alone = measured_power(gains_of(16, spread), ASKED, np.random.default_rng(0))
    assert (power.n_in_group, alone.n_in_group) == (12, 0)
    assert power.detectable_gain is not None
    assert alone.detectable_gain is not None

    def passes(gain: float) -> float:
        seeds = range(0, 200, 2)
        both = [(sides(gain, spread=spread, seed=seed), sides(0.0, n=12, spread=spread, seed=seed + 1)) for seed in seeds]
        verdicts = [judge(*own, ASKED, rung="own", adapter="a", rng=RNG, random_group=group) for own, group in both]
        return float(np.mean([verdict.passed for verdict in verdicts]))

    assert passes(power.detectable_gain) == pytest.approx(WANTED_POWER, abs=0.1)
    assert passes(0.0) == pytest.approx(power.false_pass, abs=0.1)
    if spread == 0.03:
        assert passes(alone.detectable_gain) < 0.4, "what passes the comparison with unified alone is refused by the group"
        assert power.false_pass < 0.05 < 0.15 < alone.false_pass
        assert "A pass may be luck" not in " ".join(power.warnings)
    assert power.sentence.endswith("; a random group is taken to gain nothing.")
    assert "random group" not in alone.sentence


def test_a_random_group_that_cannot_be_asked_is_not_spoken_of() -> None:
    power = measured_power(gains_of(16, 0.03), ASKED, np.random.default_rng(0), group_gains=gains_of(1, 0.03))
    assert power == measured_power(gains_of(16, 0.03), ASKED, np.random.default_rng(0))
    assert "random group" not in power.sentence


@pytest.mark.whole
def test_the_interval_is_welchs_and_what_it_is_said_to_show_it_shows_four_times_in_five() -> None:
    rng = np.random.default_rng(3)
    of, group = rng.normal(0.03, 0.02, 16), rng.normal(0.01, 0.04, 12)
    expected = stats.ttest_ind(of, group, equal_var=False).confidence_interval(0.95)
    compared = against_random_group(of, group)
    assert (compared.low, compared.high) == pytest.approx((expected.low, expected.high))
    sixteen = [(rng.normal(0, 0.02, 16), rng.normal(0, 0.02, 16)) for _ in range(1500)]
    detectable = float(np.median([against_random_group(a, b).detectable for a, b in sixteen]))
    shown = np.mean([against_random_group(a + detectable, b).low > 0 for a, b in sixteen])
    by_luck = np.mean([against_random_group(a, b).low > 0 for a, b in sixteen])
    assert shown == pytest.approx(0.8, abs=0.04)
    assert by_luck == pytest.approx(0.025, abs=0.015)


def test_people_whose_gains_are_all_alike_are_compared_without_an_error() -> None:
    compared = against_random_group(np.full(4, 0.05), np.full(4, 0.01))
    assert (compared.low, compared.high, compared.has_power) == (pytest.approx(0.04), pytest.approx(0.04), True)


@pytest.mark.whole
def test_a_study_that_asks_trains_the_group_of_that_size_at_the_gate_and_no_group_more_for_it(seven: Study, stores: Stores) -> None:
    rung = Rung(name="warm-start", init="unified")
    gate = replace(seven.gate, above_random_group=True, ladder=(rung,))
    study = replace(seven, methods=("unified", "cluster", "random_cluster"), gate=gate)
    prepare_study(study, stores, LOG)
    cluster_study(study.name, stores, LOG)
    plan = plan_of(study, stores)
    assert plan.random_group == "random-00"
    assert len(plan.specs["random-00"].persona_ids) == len(plan.specs["cluster-00"].persona_ids)
    step = next_gate_step(state_of(study, stores))
    assert step is not None
    assert {name for wave in step.waves for group in wave for name in group.adapters} == {"unified", "cluster-00", "random-00"}
    without = replace(study, gate=replace(gate, above_random_group=False))
    assert plan_of(without, stores).random_group is None
    assert plan_of(without, stores).keys == plan.keys
    assert not [g for wave in gate_groups(state_of(without, stores), plan_of(without, stores)) for g in wave if "random-00" in g.adapters]
    other = work_plan(state_of(study, stores), rung)
    assert other.random_group == "random-00+warm-start", "whose start is the rung's as well"
    assert other.specs["random-00+warm-start"].init_from == "unified"

    run_gate(study, stores)
    evaluate(EvaluationRequest(study_name=study.name, part="power"), stores, LOG)
    assert estimate_power(study.name, stores).n_in_group == len(plan.specs["random-00"].persona_ids)
    noted = next(verdict for verdict in state_of(study, stores).verdicts if verdict.rung == "own").notes
    assert any("a random group is taken to gain nothing" in note for note in noted)
    verdict = verdict_on(state_of(study, stores), "own", None, stores)
    assert any("in the random group" in note for note in verdict.notes)
    assert not any("in the random group" in note for note in verdict_on(state_of(study, stores), "own", 0, stores).notes)


def test_asking_without_the_control_is_refused() -> None:
    overrides = {"gate.above_random_group": True, "methods": ["unified", "cluster"]}
    with pytest.raises(BadSettings, match=r"gate\.above_random_group = true: methods do not include random_cluster"):
        resolve("quick", overrides=overrides)
    assert resolve("quick", overrides={"methods": ["unified", "cluster"]}).gate.above_random_group is None
