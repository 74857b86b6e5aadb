"""The gate may ask that the judged cluster gains more than random people would, and says whether it can tell."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from clusterlora.config import resolve
from clusterlora.errors import BadSettings
from clusterlora.gate.judge import judge
from clusterlora.gate.random_group import against_random_group
from clusterlora.planning.gate_step import next_gate_step
from clusterlora.planning.training_groups import gate_groups
from clusterlora.planning.work_plan import work_plan
from clusterlora.ports.stores import Stores
from clusterlora.settings import GateSettings, Rung, Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.judge import verdict_on
from clusterlora.stages.prepare import prepare_study
from tests.fixtures.stages import LOG, plan_of, run_gate, state_of

ASKED = GateSettings(above_random_group=True)
RNG = np.random.default_rng(0)


def sides(gain: float, *, n: int = 16, spread: float = 0.02, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return an adapter's and unified's scores of n people whose gains vary by `spread` around `gain`."""
    rng = np.random.default_rng(seed)
    unified = {f"p{seed}-{i}": rng.uniform(0.5, 0.7, 6) for i in range(n)}
    return {p: scores + gain + spread * rng.normal() for p, scores in unified.items()}, unified


def criteria(gain: float, of_group: float, settings: GateSettings = ASKED, **sample: float) -> dict[str, bool]:
    candidate, group = sides(gain, **sample), sides(of_group, seed=1, **sample)  # pyright: ignore[reportArgumentType]
    verdict = judge(*candidate, settings, rung="own", adapter="cluster-00", rng=RNG, random_group=group)
    return {criterion.name: criterion.passed for criterion in verdict.criteria}


def test_a_cluster_that_gains_what_random_people_gain_is_refused_though_it_beats_unified() -> None:
    assert criteria(0.05, 0.05) == {"above_unified": True, "share_of_personas_improved": True, "above_random_group": False}
    assert criteria(0.05, 0.0)["above_random_group"]
    assert criteria(0.05, -0.05)["above_random_group"]


def test_where_five_points_would_not_be_shown_it_is_not_asked_and_a_note_says_what_would_be() -> None:
    assert "above_random_group" not in criteria(0.05, 0.05, spread=0.2)
    assert "above_random_group" not in criteria(0.05, 0.05, n=1)
    assert "above_random_group" in criteria(0.05, 0.05, GateSettings())
    assert "above_random_group" not in criteria(0.05, 0.05, GateSettings(above_random_group=False))
    candidate, group = sides(0.05, spread=0.2), sides(0.05, seed=1, spread=0.2)
    (note,) = judge(*candidate, ASKED, rung="own", adapter="cluster-00", rng=RNG, random_group=group).notes
    assert note.startswith("With 16 personas in the cluster and 16 in the random group a true difference of ")
    assert "so the gate does not ask whether the cluster gains more than the group" in note


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
    verdict = verdict_on(state_of(study, stores), "own", None, stores)
    assert any("in the random group" in note for note in verdict.notes)
    assert not any("in the random group" in note for note in verdict_on(state_of(study, stores), "own", 0, stores).notes)


def test_asking_without_the_control_is_refused() -> None:
    overrides = {"gate.above_random_group": True, "methods": ["unified", "cluster"]}
    with pytest.raises(BadSettings, match=r"gate\.above_random_group = true: methods do not include random_cluster"):
        resolve("quick", overrides=overrides)
    assert resolve("quick", overrides={"methods": ["unified", "cluster"]}).gate.above_random_group is None
