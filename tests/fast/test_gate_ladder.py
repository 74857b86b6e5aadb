"""A gate that cannot pass is not climbed: thresholds out of reach are told, and rungs that can mend nothing are not run."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from clusterlora.comparison.champion import LEAST_PERSONAS
from clusterlora.errors import BadData, BadSettings
from clusterlora.gate.ceiling import Ceiling, ceiling
from clusterlora.gate.power import Power, gate_power, measured_power
from clusterlora.gate.report import markdown
from clusterlora.metadata import ComparisonSummary, Decision, TrialRecipe
from clusterlora.planning.decisions import decide
from clusterlora.planning.ladder import (
    OWN,
    command_to_continue,
    may_be_decided,
    next_rung,
    refused,
    rung_by_name,
    why_not_climbed,
    worth_trying,
)
from clusterlora.planning.study_state import StudyState, read_state
from clusterlora.planning.work_plan import recipes_on
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.progress.timeline import next_step, phases
from clusterlora.settings import ClusteringSettings, GateSettings, Rung, Study, prepared
from clusterlora.stages.evaluate import compared_personas
from clusterlora.stages.judge import judge_rung, measure_ceiling
from clusterlora.stages.prepare import prepare_study
from clusterlora.values import Clustering, Criterion, Verdict
from tasks.decision import GateDecision
from tasks.preparation import cluster
from tests.fixtures.stages import run

REACHED = Ceiling(mean=0.62, worst=0.31, worst_persona_id="p3", n_answers=900)
ABSOLUTE = GateSettings(mean_similarity=0.5, worst_persona=0.7)


class Letters:
    """An embedder of texts as counts of a, b and c."""

    name = "letters"
    revision = "1"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float64)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def verdict(*failed: str, rung: str = OWN.name, n_personas: int = 16) -> Verdict:
    names = ("mean_similarity", "above_unified", "worst_persona", "share_of_personas_improved")
    criteria = tuple(Criterion(name, 0.1, 0.5, name not in failed, None, None, "") for name in names)
    return Verdict(rung=rung, adapter="cluster-00", criteria=criteria, n_personas=n_personas, n_items=5 * n_personas)


def state_with(gate: GateSettings, *verdicts: Verdict, measured: Ceiling | None = REACHED) -> StudyState:
    return StudyState(
        settings=prepared(Study(name="mine", gate=gate, clustering=ClusteringSettings(k=2, sizes=(2, 2))), "float32"),
        status="running",
        data=None,
        clustering=Clustering("given", (("a", "b"), ("c", "d"))),
        verdicts=verdicts,
        decisions=(),
        adapters=(),
        attempts=(),
        imported=None,
        refinement=None,  # pyrefly: ignore[bad-argument-type]  (no refinement in these tests)
        provenance=None,
        power=None,
        ceiling=measured,
        outcome=None,
        seconds=(),
        page=None,
    )


def test_the_ceiling_is_what_the_closest_train_answer_scores_for_each_val_answer():
    known = ceiling({"p": ["aa", "ab"], "q": ["c"]}, ["a", "a", "bc"], Letters())
    half = np.sqrt(0.5)
    assert known.mean == pytest.approx(((1 + half) / 2 + half) / 2)
    assert (known.worst, known.worst_persona_id, known.n_answers) == (pytest.approx(half), "q", 2)
    with pytest.raises(BadData, match="look at the splits"):
        ceiling({"p": []}, ["a"], Letters())


def test_a_threshold_above_the_ceiling_is_told_with_its_numbers_and_the_fix():
    ((name, sentence),) = REACHED.out_of_reach(ABSOLUTE).items()
    assert name == "worst_persona"
    for words in ("gate.worst_persona = 0.70", "0.31 for the worst persona, p3", "900 train answers", "--set gate.worst_persona=none"):
        assert words in sentence
    assert REACHED.out_of_reach(GateSettings()) == {}
    assert GateSettings().worst_persona is None, "off unless asked for"


def test_a_rung_is_one_more_recipe_for_clusters_alone():
    study = prepared(Study(name="ladder", cluster_init="base"), dtype="float32")
    others = {"unified": TrialRecipe(replace(study.recipe, rank=2), "base")}
    assert recipes_on(OWN, study, others) == others
    lower = Rung(name="lower-lr", learning_rate=1e-5, init="unified")
    assert recipes_on(lower, study, others) == {**others, "cluster": TrialRecipe(replace(study.recipe, learning_rate=1e-5), "unified")}
    tuned = {"cluster": TrialRecipe(replace(study.recipe, epochs=7), "unified")}
    assert recipes_on(lower, study, tuned)["cluster"] == TrialRecipe(replace(study.recipe, learning_rate=1e-5, epochs=7), "unified")
    assert recipes_on(Rung(name="longer", epochs=9), study, {})["cluster"] == TrialRecipe(replace(study.recipe, epochs=9), "base")


def test_no_rung_is_run_that_cannot_mend_what_failed():
    out_of_reach = state_with(ABSOLUTE, verdict("worst_persona"))
    assert next_rung(out_of_reach) is None
    assert refused(out_of_reach)
    assert "gate.worst_persona = 0.70 is out of reach" in why_not_climbed(out_of_reach)[0]
    mendable = state_with(ABSOLUTE, verdict("above_unified"))
    rung = next_rung(mendable)
    assert rung is not None
    assert rung.name == "lower-lr"
    assert not refused(mendable)
    unknown = state_with(ABSOLUTE, verdict("worst_persona"), measured=None)
    assert next_rung(unknown) is not None, "nothing is known to be out of reach"


def test_no_further_rung_is_run_for_so_few_people_that_it_passes_by_luck_alone():
    # Three further rungs share 5 %: five of five tossed coins come up heads 3.1 % of the time, six of six 1.6 %.
    five, six = (state_with(GateSettings(), verdict("above_unified", n_personas=n)) for n in (5, 6))
    assert next_rung(five) is None
    assert "5 people cannot pass a further rung but by luck" in why_not_climbed(five)[0]
    assert next_rung(six) is not None
    careless = state_with(GateSettings(later_rungs_luck=None), verdict("above_unified", n_personas=5))
    assert next_rung(careless) is not None, "whoever turns the correction off climbs"


def test_a_retry_that_never_got_a_verdict_can_be_decided_on_again():
    climbed = state_with(GateSettings(ladder=()), verdict("above_unified"))
    assert refused(climbed)
    retry = Decision("retry", Rung(name="asked-1", epochs=7))
    waiting = replace(climbed, decisions=(retry,))
    assert next_rung(waiting) == retry.rung
    assert may_be_decided(waiting), "its training may have failed"
    stopped = replace(climbed, decisions=(retry, Decision("stop")))
    assert next_rung(stopped) is None
    assert refused(stopped)
    assert rung_by_name(stopped, "asked-1") == retry.rung, "a training of it may still run"
    second = Decision("retry", Rung(name="asked-2", epochs=2))
    again = replace(climbed, decisions=(retry, second))
    assert next_rung(again) == second.rung
    judged = replace(again, verdicts=(*climbed.verdicts, verdict("above_unified", rung="asked-1")))
    assert worth_trying(judged) == (OWN, retry.rung, second.rung), "what was judged counts"
    assert not may_be_decided(state_with(GateSettings(ladder=()), verdict()))
    assert not may_be_decided(replace(climbed, decisions=(Decision("continue"),)))


@pytest.mark.parametrize(
    "slip", [{"learning_rate": 1e4}, {"learning_rate": math.inf}, {"learning_rate": math.nan}, {"epochs": 10_001}, {"epochs": 0}]
)
def test_a_retry_that_cannot_be_trained_is_refused_before_it_is_recorded(slip: dict[str, Any], stores: Stores):
    stores.studies.create_study(prepared(Study(name="mine"), "float32"))
    with pytest.raises(BadSettings, match=rf"a retry with recipe.{next(iter(slip))} = .*: use (at most|at least|more than)"):
        decide("mine", stores, Decision("retry", Rung(name="asked", **slip)))
    assert not read_state("mine", stores).decisions
    with pytest.raises(ValidationError):
        GateDecision(choice="retry", **slip)


def test_a_gate_of_people_who_differ_as_they_were_seen_to_differ_does_not_contradict_its_interval():
    """Three people whose gains are 2.5, 6.5 and 10.5 points apart from luck: by the spread of the base model it was 4.2 points."""
    gains = {p: np.array([g - 0.03, g + 0.03]) for p, g in (("a", 0.025), ("b", 0.065), ("c", 0.105))}
    power = measured_power(gains, GateSettings(), np.random.default_rng(0))
    assert power.gain_sd(2) == pytest.approx(0.04, rel=0.1)
    wide = {p: 10 * values for p, values in gains.items()}
    assert (measured_power(wide, GateSettings(), np.random.default_rng(0)).detectable_gain or 1) > 5 * (power.detectable_gain or 0)


@pytest.mark.parametrize(
    ("passed", "low", "high", "words"),
    [
        (True, 0.02, 0.06, None),
        (True, -0.02, 0.15, "A pass may be luck: 30% of clusters"),
        (True, None, None, "A pass may be luck"),
        (False, -0.06, 0.04, None),
        (False, -0.06, 0.06, "A refusal may be luck: a true gain of 5 points is refused 60% of the time"),
        (False, None, None, "A refusal may be luck"),
    ],
)
def test_a_verdict_is_called_luck_only_where_its_interval_allows_it(
    passed: bool, low: float | None, high: float | None, words: str | None
) -> None:
    gain = Criterion(name="above_unified", value=0.0, threshold=0.0, passed=passed, ci_low=low, ci_high=high, explanation="")
    judged = Verdict(rung="own", adapter="cluster-00", criteria=(gain,), n_personas=5, n_items=10)
    power = Power(n_personas=5, n_items=10, item_sd=0.1, persona_sd=0.1, detectable_gain=0.1, false_pass=0.3, missed=0.6)
    assert len(power.warnings) == 2, "before a verdict, both may come"
    told = power.warnings_after(judged)
    assert len(told) == (words is not None)
    assert words is None or told[0].startswith(words)


def test_after_a_verdict_its_interval_says_what_a_pass_is_worth() -> None:
    rng = np.random.default_rng(0)
    gains = {f"p{person}": rng.normal(0.05, 0.05, 4) for person in range(12)}
    assert gate_power(gains, GateSettings(), rng).worth is not None
    assert "a pass makes" not in measured_power(gains, GateSettings(), rng).sentence


@pytest.mark.parametrize("gains", [{"a": np.array([0.1])}, {"a": np.array([0.1, 0.1]), "b": np.array([0.1, 0.1])}])
def test_without_a_spread_the_power_note_says_what_is_missing(gains: dict[str, np.ndarray]):
    power = measured_power(gains, GateSettings(), np.random.default_rng(0))
    assert "nothing can be said of what this gate passes by luck" in power.sentence
    assert "0.0 points" not in power.sentence
    assert "1 personas" not in power.sentence
    assert "1 val items" not in power.sentence
    assert power.warnings == ()


@pytest.mark.whole
def test_a_refusal_ends_with_the_command_that_goes_on_and_the_power_is_noted_once(seven: Study, stores: Stores):
    study = replace(seven, gate=GateSettings(mean_similarity=1.0, later_rungs_luck=None, ladder=seven.gate.ladder))
    run(study, stores)
    own, warm = stores.studies.verdicts(study.name)
    assert sum("passes it" in note or "nothing can be said" in note for one in (own, warm) for note in one.notes) == 1
    assert "personas and" in own.notes[0]
    assert warm.notes[-1] == f"To train the rest all the same: `{command_to_continue(study.name)}`"
    assert markdown(warm).rstrip().endswith("`clusterlora study decide small --go-on && clusterlora study run --name small`")
    state = read_state(study.name, stores)
    assert refused(state)
    assert next_step(replace(state, status="finished")).endswith(command_to_continue(study.name))
    decide(study.name, stores, Decision("continue"))
    after = replace(read_state(study.name, stores), status="running", outcome=ComparisonSummary(None, "", gate_refused=True))
    assert not refused(after), "decided after a gate that stops, too"
    assert not [phase for phase in phases(after) if phase.name in ("evaluate", "compare") and phase.state == "done"]
    assert {phase.state for phase in phases(replace(after, status="finished")) if phase.name in ("evaluate", "compare")} == {"done"}


@pytest.mark.whole
def test_a_threshold_out_of_reach_is_measured_before_the_verdict_and_ends_the_ladder(seven: Study, stores: Stores):
    study = replace(seven, gate=GateSettings(worst_persona=1.0, later_rungs_luck=None, ladder=seven.gate.ladder, on_failure="stop"))
    prepare_study(study, stores, SilentLog())
    stores.studies.save_clustering(study.name, Clustering("given", (seven_ids(stores)[:3], seven_ids(stores)[3:])))
    measured = measure_ceiling(study.name, stores)
    assert measured is not None
    assert 0 < measured.worst <= measured.mean <= 1
    assert read_state(study.name, stores).ceiling == measured, "before anything is trained"
    run(study, stores)
    (only,) = stores.studies.verdicts(study.name)
    assert any("The ladder is not climbed" in note and "gate.worst_persona = 1.00" in note for note in only.notes)
    assert [phase.state for phase in phases(read_state(study.name, stores)) if phase.name == "gate"] == ["done"]
    assert judge_rung(study.name, OWN.name, stores).notes == only.notes, "judged again, it says the same"


class Notes(SilentLog):
    """A run log that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.whole
def test_a_threshold_out_of_reach_is_told_with_the_clusters_before_anything_is_trained(
    seven: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch
):
    study, log, artifacts = replace(seven, gate=replace(seven.gate, worst_persona=1.0)), Notes(), []
    prepare_study(study, stores, SilentLog())
    monkeypatch.setattr("tasks.study_task.from_environment", lambda: stores)
    monkeypatch.setattr("tasks.study_task.PrefectRunLog", lambda _: log)
    monkeypatch.setattr("tasks.preparation.create_markdown_artifact", lambda text, **_: artifacts.append(text))
    cluster.fn(study.name)
    assert not stores.studies.adapters(study.name)
    for told in (*artifacts, "\n".join(log.said)):
        assert "gate.worst_persona = 1.00 is out of reach of these data" in told


def seven_ids(stores: Stores) -> tuple[str, ...]:
    return stores.studies.dataset("small").ids


@pytest.mark.whole
def test_after_a_refused_gate_of_very_few_people_everybody_is_compared(seven: Study, stores: Stores):
    study = replace(seven, methods=("baseline", "unified", "cluster"), gate=GateSettings(mean_similarity=1.0, ladder=(), on_failure="stop"))
    run(study, stores)
    state = read_state(study.name, stores)
    assert state.clustering is not None
    assert len(state.clustering.members[0]) < LEAST_PERSONAS
    assert compared_personas(state) == state.dataset.ids
    assert {(route.method, route.persona_id) for route in stores.studies.routes(study.name)} == {
        (method, p) for method in ("baseline", "unified") for p in state.dataset.ids
    }


def test_a_finished_study_without_a_champion_is_not_told_to_serve_it(finished_stores: Stores, seven: Study):
    state = read_state(seven.name, finished_stores)
    assert state.outcome is not None
    assert "Serve its champion, unified" in next_step(state)
    without = replace(state, outcome=ComparisonSummary(None, "No champion: x.", state.outcome.scores))
    assert "Serve" not in next_step(without)
    assert "without a champion" in next_step(without)
