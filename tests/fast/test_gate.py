"""The gate: what passes, what is refused, and the report."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clusterlora.errors import BadData
from clusterlora.evaluation.metrics import METRICS
from clusterlora.gate.criteria import CRITERIA
from clusterlora.gate.criteria.above_unified import above_unified
from clusterlora.gate.criteria.share_of_personas_improved import share_of_personas_improved
from clusterlora.gate.judge import judge
from clusterlora.gate.power import CORRELATION, WANTED_POWER, gate_power
from clusterlora.gate.report import ending, markdown
from clusterlora.gate.required_share import required_share
from clusterlora.gate.trial import trial
from clusterlora.settings import GateSettings
from clusterlora.values import Verdict

GOLDEN = Path(__file__).parents[1] / "golden"
STRICT = GateSettings(mean_similarity=0.83, worst_persona=0.70, share_improved=0.60)


def scores(mean: float, *, n_personas: int = 16, n_items: int = 6, seed: int = 0, spread: float = 0.02) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"persona_{p:03d}": mean + rng.normal(0, spread, size=n_items) for p in range(n_personas)}


def shifted(of: dict[str, np.ndarray], by: float) -> dict[str, np.ndarray]:
    return {persona: values + by for persona, values in of.items()}


def verdict(candidate: dict[str, np.ndarray], unified: dict[str, np.ndarray], settings: GateSettings = STRICT) -> Verdict:
    return judge(candidate, unified, settings, rung="study", adapter="cluster-00", rng=np.random.default_rng(0))


def passed(verdict: Verdict) -> dict[str, bool]:
    return {criterion.name: criterion.passed for criterion in verdict.criteria}


def test_a_candidate_clearly_better_passes_every_criterion():
    judged = verdict(scores(0.88), scores(0.80, seed=1))
    assert passed(judged) == {name: True for name in CRITERIA if name not in ("second_headline", "above_random_group")}
    assert judged.passed
    assert (judged.n_personas, judged.n_items) == (16, 96)


def test_a_candidate_below_unified_is_refused_however_high_it_scores():
    judged = verdict(scores(0.90), scores(0.95, seed=1))
    assert passed(judged) == {"mean_similarity": True, "above_unified": False, "worst_persona": True, "share_of_personas_improved": False}


def test_one_persona_left_behind_refuses_the_candidate_and_is_named():
    candidate = scores(0.90) | {"persona_007": np.full(6, 0.5)}
    judged = verdict(candidate, scores(0.80, seed=1))
    assert [name for name, ok in passed(judged).items() if not ok] == ["worst_persona"]
    assert "persona_007" in judged.criteria[2].explanation
    assert judged.criteria[2].value == pytest.approx(0.5)


@pytest.mark.parametrize(("nats", "passes"), [(2.0, True), (2.4, False)])
def test_where_lower_is_better_the_gate_passes_what_is_lower_and_tells_it_in_nats(nats: float, passes: bool):
    relative = GateSettings(mean_similarity=None, worst_persona=None)
    judged = judge(
        scores(nats), scores(2.2, seed=1), relative, rung="own", adapter="cluster-00", rng=np.random.default_rng(0), metric=METRICS["nll"]
    )
    assert judged.passed == passes
    above, share = judged.criteria
    assert above.value == pytest.approx(2.2 - nats, abs=0.01), "a gain is positive where the adapter is better"
    assert above.explanation.startswith(f"{-above.value:+.3f} nats against unified"), "as the metric counts it"
    assert "less is better" in above.explanation
    assert "points" not in markdown(judged)
    assert f"| above_unified | {above.value:.3f} |" in markdown(judged)
    assert share.value == float(passes)
    power = gate_power(scores(2.2, spread=0.1), relative, np.random.default_rng(0), "nll")
    assert "a true gain of 0.0" in power.sentence
    assert "nats passes" in power.sentence
    assert "points" not in power.sentence


def test_a_gain_that_few_personas_share_is_refused():
    unified = scores(0.84)
    candidate = {persona: values + (0.5 if index < 5 else -0.001) for index, (persona, values) in enumerate(unified.items())}
    judged = verdict(candidate, unified)
    assert [name for name, ok in passed(judged).items() if not ok] == ["share_of_personas_improved"]
    assert judged.criteria[3].value == 5 / 16
    assert judged.criteria[3].explanation.startswith("5 of 16 personas do better than with unified, fewer than")
    equal = verdict({persona: values + (0.5 if index < 5 else 0.0) for index, (persona, values) in enumerate(unified.items())}, unified)
    assert equal.criteria[3].explanation.startswith("5 of 16 personas do better than with unified and 11 equally well, fewer than")


@pytest.mark.whole
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 4),
    st.floats(-1e-7, 1e-7),
    st.builds(
        GateSettings,
        mean_similarity=st.none() | st.just(0.0),
        worst_persona=st.none() | st.just(0.0),
        share_improved=st.sampled_from([0.0, 0.6]),
    ),
)
def test_an_adapter_equal_to_its_base_never_passes_the_gate(n_personas: int, n_items: int, rounding: float, lenient: GateSettings):
    unified = scores(0.9, n_personas=n_personas, n_items=n_items)
    assert not verdict(shifted(unified, rounding), unified, lenient).passed


def test_a_score_at_the_threshold_does_not_exceed_it_but_a_share_at_it_suffices():
    unified = {f"p{index}": np.full(3, 0.5) for index in range(5)}
    candidate = {persona: np.full(3, 0.75 if persona < "p3" else 0.25) for persona in unified}
    at = GateSettings(mean_similarity=0.55, worst_persona=0.25, share_improved=0.6)
    assert passed(verdict(candidate, unified, at)) == {
        "mean_similarity": False,
        "above_unified": True,
        "worst_persona": False,
        "share_of_personas_improved": True,
    }


def test_criteria_that_are_not_set_are_left_out():
    judged = verdict(scores(0.5), scores(0.4, seed=1), GateSettings(mean_similarity=None, worst_persona=None))
    assert passed(judged) == {"above_unified": True, "share_of_personas_improved": True}


@pytest.mark.whole
def test_every_interval_holds_its_value_and_shrinks_with_more_personas():
    few = verdict(scores(0.85, spread=0.1), scores(0.80, seed=1, spread=0.1))
    many = verdict(scores(0.85, n_personas=200, spread=0.1), scores(0.80, n_personas=200, seed=1, spread=0.1))
    for criterion in (*few.criteria, *many.criteria):
        assert criterion.ci_low is not None
        assert criterion.ci_high is not None
        assert criterion.ci_low <= criterion.value <= criterion.ci_high
    widths = [{c.name: (c.ci_high or 0) - (c.ci_low or 0) for c in judged.criteria} for judged in (few, many)]
    for name in ("mean_similarity", "above_unified", "share_of_personas_improved"):
        assert widths[1][name] < 0.5 * widths[0][name]


def test_personas_weigh_the_same_however_many_items_they_have():
    candidate = {"a": np.full(30, 0.9), "b": np.full(2, 0.5)}
    assert verdict(candidate, shifted(candidate, -0.1)).criteria[0].value == pytest.approx(0.7)


def test_the_order_of_the_personas_changes_nothing():
    candidate, unified = scores(0.85), scores(0.84, seed=1)
    assert verdict(candidate, unified) == verdict(dict(reversed(candidate.items())), dict(reversed(unified.items())))


def test_one_item_gives_the_worst_persona_no_interval():
    worst = verdict(scores(0.9, n_items=1), scores(0.8, n_items=1)).criteria[2]
    assert (worst.ci_low, worst.ci_high) == (None, None)


def test_the_worst_persona_has_an_interval_over_its_dialogues_as_their_turns_share_their_luck():
    own = {"p": np.array([0.5, 0.7, 0.6, 0.4])}

    def bounds(items: dict[str, np.ndarray], dialogues: dict[str, np.ndarray] | None = None) -> tuple[float | None, float | None]:
        judged = judge(items, shifted(items, -0.1), STRICT, rung="own", adapter="a", rng=np.random.default_rng(0), dialogues=dialogues)
        worst = judged.criteria[2]
        assert worst.name == "worst_persona"
        return worst.ci_low, worst.ci_high

    half = stats.t.ppf(0.975, 3) * np.std([0.5, 0.7, 0.6, 0.4], ddof=1) / 2
    assert bounds(own) == pytest.approx((0.55 - half, 0.55 + half)), "one turn per dialogue: Student's interval"
    twice = {"p": np.repeat(own["p"], 2)}
    assert bounds(twice, {"p": np.repeat(np.arange(4), 2)}) == pytest.approx(bounds(own)), "a turn that repeats another tells nothing more"
    assert bounds(own, {"p": np.zeros(4, dtype=np.int64)}) == (None, None)


def test_sides_that_do_not_match_are_refused():
    unified = scores(0.8)
    with pytest.raises(BadData, match="'persona_003' was scored with only one"):
        verdict({persona: values for persona, values in unified.items() if persona != "persona_003"}, unified)
    with pytest.raises(BadData, match=r"'persona_003' has candidate scores of shape \(2,\)"):
        verdict(unified | {"persona_003": np.zeros(2)}, unified)
    with pytest.raises(BadData, match="'persona_003' has a score that is not finite"):
        verdict(unified | {"persona_003": np.full(6, np.nan)}, unified)
    with pytest.raises(BadData, match=r"shape \(0,\)"):
        verdict({"a": np.zeros(0)}, {"a": np.zeros(0)})
    with pytest.raises(BadData, match="no personas"):
        verdict({}, {})


def test_a_refused_verdict_reads_like_the_golden_report():
    candidate = scores(0.86, seed=2, spread=0.05) | {"persona_007": np.linspace(0.6, 0.72, 6)}
    judged = verdict(candidate, scores(0.85, seed=3, spread=0.05))
    assert markdown(judged) == (GOLDEN / "verdict_refused.md").read_text()


def test_a_passed_verdict_says_so():
    assert markdown(verdict(scores(0.88), scores(0.80, seed=1))).startswith("## Gate passed\n")


def test_a_persona_id_cannot_break_out_of_the_report():
    hostile = "x|y\n<script>alert(1)</script> [a](b) `c` \\"
    judged = verdict({hostile: np.full(3, 0.9)}, {hostile: np.full(3, 0.8)})
    lines = markdown(judged).splitlines()
    worst = next(line for line in lines if line.startswith("| worst_persona"))
    assert worst.replace("\\|", "").count("|") == 7
    assert not {"<script", "[a]", "`c`"} & {part for part in ("<script", "[a]", "`c`") if part in "\n".join(lines)}


def test_the_adapter_and_rung_are_named_in_the_report():
    judged = replace(verdict(scores(0.88), scores(0.80, seed=1)), rung="lower-lr", adapter="cluster-00")
    assert "Adapter **cluster-00**, rung **lower-lr**" in markdown(judged)


GAINS_ONLY = GateSettings(mean_similarity=None, worst_persona=None, share_improved=0.60)


def imagined_gate(rng: np.random.Generator, *, gain: float, item_sd: float, persona_sd: float, n_items: int) -> bool:
    """Return whether the real gate passes on scores drawn as the power calculation imagines them."""
    factor = np.sqrt(2 * (1 - CORRELATION))
    unified = scores(0.75, n_items=n_items, spread=item_sd)
    candidate = {
        persona: values + gain + factor * (persona_sd * rng.normal() + item_sd * rng.normal(size=n_items))
        for persona, values in unified.items()
    }
    both = trial(candidate, unified)
    criteria = (above_unified(both, GAINS_ONLY, rng), share_of_personas_improved(both, GAINS_ONLY, rng))
    return all(criterion.passed for criterion in criteria)


@pytest.mark.whole
@pytest.mark.parametrize("n_items", [3, 12])
def test_the_detectable_gain_of_a_gate_passes_it_four_times_in_five(n_items: int, monkeypatch: pytest.MonkeyPatch):
    # The module; the package gives its name to the function inside. Only the interval needs draws, and it is not looked at here.
    monkeypatch.setattr(sys.modules[above_unified.__module__], "DRAWS", 10)
    rng = np.random.default_rng(n_items)
    baseline = {f"persona_{p}": 0.75 + 0.04 * rng.normal() + 0.12 * rng.normal(size=n_items) for p in range(400)}
    deviations = gate_power(baseline, GAINS_ONLY, rng)
    assert deviations.item_sd == pytest.approx(0.12, rel=0.15)
    assert deviations.persona_sd == pytest.approx(0.04, abs=0.025)

    sixteen = dict(list(baseline.items())[:16])
    power = gate_power(sixteen, GAINS_ONLY, rng)
    assert power.detectable_gain is not None
    spread = {"item_sd": power.item_sd, "persona_sd": power.persona_sd, "n_items": n_items}
    passed = np.mean([imagined_gate(rng, gain=power.detectable_gain, **spread) for _ in range(300)])
    assert passed == pytest.approx(WANTED_POWER, abs=0.075)
    by_luck = np.mean([imagined_gate(rng, gain=0.0, **spread) for _ in range(300)])
    assert by_luck == pytest.approx(power.false_pass, abs=0.075)


def test_a_share_of_three_in_five_of_sixteen_personas_passes_by_luck_and_the_gate_warns():
    power = gate_power(scores(0.75, spread=0.12), GAINS_ONLY, np.random.default_rng(1))
    # Ten or more heads in sixteen tosses: 22.7 %. The mean must be above zero too, which then hardly ever fails.
    assert 0.18 < power.false_pass < 0.24
    assert any("A pass may be luck" in warning for warning in power.warnings)
    strict = gate_power(scores(0.75, spread=0.12), replace(GAINS_ONLY, share_improved=0.8), np.random.default_rng(1))
    assert not any("A pass may be luck" in warning for warning in strict.warnings)


@pytest.mark.parametrize(("n_personas", "uncorrected"), [(16, 0.53), (40, 0.36)])
def test_four_equal_rungs_pass_by_luck_twice_as_often_as_one_and_stricter_later_rungs_hardly_add_any(n_personas: int, uncorrected: float):
    baseline = scores(0.75, n_personas=n_personas, spread=0.12)
    equal = gate_power(baseline, replace(GAINS_ONLY, later_rungs_luck=None), np.random.default_rng(1))
    strict = gate_power(baseline, GAINS_ONLY, np.random.default_rng(1))
    assert equal.n_rungs == strict.n_rungs == 4
    assert equal.ladder_false_pass == pytest.approx(uncorrected, abs=0.04)
    assert strict.ladder_false_pass is not None
    assert strict.false_pass <= strict.ladder_false_pass <= strict.false_pass + 0.05 + 0.01
    assert strict.worth is not None
    assert equal.worth is not None
    assert strict.worth > equal.worth
    assert f"one of its 4 rungs is passed so {strict.ladder_false_pass:.0%} of the time" in strict.sentence
    assert f"a pass makes the gain {strict.worth:.0%} likely" in strict.sentence


@pytest.mark.whole
def test_the_luck_of_the_ladder_is_that_of_the_gate_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[above_unified.__module__], "DRAWS", 10)
    rng = np.random.default_rng(8)
    ladder = GAINS_ONLY
    power = gate_power(scores(0.75, n_items=6, spread=0.12), ladder, np.random.default_rng(1))
    assert power.ladder_false_pass is not None

    def answers() -> dict[str, np.ndarray]:
        own = np.sqrt(1 - CORRELATION)
        return {
            persona: 0.75 + own * (power.persona_sd * rng.normal() + power.item_sd * rng.normal(size=6)) for persona in map(str, range(16))
        }

    def ladder_passes() -> bool:
        unified = answers()
        for rung in range(4):
            asked = replace(ladder, share_improved=required_share(ladder, n_personas=16, rung=rung, n_rungs=4))
            both = trial(answers(), unified)
            if all(criterion(both, asked, rng).passed for criterion in (above_unified, share_of_personas_improved)):
                return True
        return False

    assert np.mean([ladder_passes() for _ in range(300)]) == pytest.approx(power.ladder_false_pass, abs=0.075)


def test_the_first_rung_is_judged_as_the_mission_says_and_later_ones_by_a_sign_test_at_their_share_of_the_luck():
    def share(n_personas: int, rung: int, n_rungs: int = 4, **changes: Any) -> float:
        return required_share(replace(GAINS_ONLY, **changes), n_personas=n_personas, rung=rung, n_rungs=n_rungs)

    assert share(16, 0) == 0.60
    # P(13 or more of 16 by tossing coins) = 0.0106 <= 0.05 / 3 < P(12 or more) = 0.0384.
    assert [share(16, rung) for rung in (1, 2, 3)] == [13 / 16] * 3
    assert share(16, 1, n_rungs=2) == 12 / 16
    assert share(16, 1, share_improved=0.9) == 0.9
    assert share(16, 1, later_rungs_luck=None) == 0.60
    assert share(4, 1) == 1.0, "even everybody is not enough, and nobody can ask for more"


def test_how_the_gate_ended_names_the_rung():
    fails, passes = verdict(scores(0.7), scores(0.8, seed=1)), verdict(scores(0.88), scores(0.80, seed=1))
    tried = [replace(fails, rung="own"), replace(passes, rung="lower-lr")]
    after_own = "The cluster adapters are those of rung lower-lr, which passed the gate after own was refused."
    assert ending(tried, "lower-lr", n_rungs=3) == after_own
    passed = ending([*tried[:1], replace(fails, rung="lower-lr"), replace(passes, rung="warm-start")], "warm-start", n_rungs=3)
    assert passed.endswith("of rung warm-start, which passed the gate after own and lower-lr were refused.")
    assert ending(tried[1:], "lower-lr", n_rungs=3) == "The cluster adapters are those of rung lower-lr, which passed the gate."
    assert ending(tried[:1], "own", n_rungs=1) == "The gate refused the only rung; the cluster adapters are those of rung own."
    assert ending(tried[:1], "own", n_rungs=3).startswith("The gate refused rung own, and no other was tried; the cluster adapters")
    refused = [*tried[:1], replace(fails, rung="warm-start")]
    of_two, of_three = (ending(refused, "warm-start", n_rungs=n) for n in (2, 3))
    assert of_two.startswith("The gate refused all 2 rungs; the cluster adapters are those of rung warm-start")
    assert of_three.startswith("The gate refused the 2 rungs that were tried; the cluster adapters are those of rung warm-start")


def test_more_items_and_more_personas_detect_smaller_gains():
    def detectable_gain(n_personas: int, n_items: int) -> float:
        power = gate_power(
            {p: 0.75 + np.tile([-0.1, 0.1], n_items // 2) for p in map(str, range(n_personas))}, GAINS_ONLY, np.random.default_rng(2)
        ).detectable_gain
        assert power is not None
        return power

    assert detectable_gain(16, 16) < detectable_gain(16, 4) < detectable_gain(8, 4)
    few = gate_power({p: np.array([0.45, 1.05]) for p in "abc"}, GAINS_ONLY, np.random.default_rng(3))
    assert any("A refusal may be luck" in warning for warning in few.warnings)


def test_scores_without_any_spread_need_hardly_any_gain():
    power = gate_power({"a": np.full(4, 0.5), "b": np.full(4, 0.5)}, GAINS_ONLY, np.random.default_rng(4))
    assert power.false_pass == 0
    assert power.detectable_gain == pytest.approx(0, abs=2e-4)
    assert power.warnings == ()


@pytest.mark.parametrize("broken", [{}, {"a": np.array([])}, {"a": np.array([0.5, np.nan])}])
def test_power_is_refused_for_missing_scores(broken: dict[str, np.ndarray]):
    with pytest.raises(BadData, match="baseline"):
        gate_power(broken, GAINS_ONLY, np.random.default_rng(5))


def test_the_notes_of_a_verdict_are_in_its_report():
    noted = replace(verdict(scores(0.88), scores(0.80, seed=1)), notes=("With 16 personas this gate sees 3 points.",))
    assert "\nWith 16 personas this gate sees 3 points.\n" in markdown(noted)
