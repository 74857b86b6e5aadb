"""The power of a comparison is estimated before anything is trained."""

import json
from dataclasses import replace

import pytest

from clusterlora.cli import main
from clusterlora.comparison.power import enough_personas, study_power
from clusterlora.evaluation.statistics import detectable_mean, smallest_p
from clusterlora.gate.power import Power
from clusterlora.planning.study_state import read_state
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.settings import Study
from clusterlora.stages.judge import power_of_study
from clusterlora.stages.prepare import prepare_study
from tests.fixtures.stages import Notes

FOUR = ("baseline", "unified", "per_persona", "cluster", "hybrid", "prefix", "random_cluster")


@pytest.mark.parametrize(("n_methods", "least"), [(1, 6), (3, 7), (4, 8), (13, 10)])
def test_so_few_personas_can_show_nothing_however_large_the_gain(n_methods: int, least: int) -> None:
    assert enough_personas(n_methods) == least
    assert n_methods * smallest_p(least) < 0.05 <= n_methods * smallest_p(least - 1)


def test_the_sentence_says_what_cannot_be_shown_and_the_fix() -> None:
    seven, eight = (study_power(FOUR, "unified", n) for n in (7, 8))
    assert seven is not None
    assert eight is not None
    assert (seven.n_methods, seven.detectable) == (4, None), "neither base model nor control could win"
    assert "With 7 personas and 4 methods that could win the comparison can show no difference, however large" in seven.sentence
    assert "use at least 8 personas" in seven.sentence
    assert eight.detectable is not None
    assert f"shows a true difference of {eight.detectable:.2f} standard deviations" in eight.sentence
    sixteen = study_power(FOUR, "unified", 16, sd=0.05)
    assert sixteen is not None
    assert sixteen.detectable == detectable_mean(0.05 / 4, 15, n_units=16, n_tests=4)
    assert study_power(("baseline", "cluster"), "unified", 50) is None
    assert study_power(("baseline", "unified"), "unified", 50) is None


def test_preparing_a_study_says_it(seven: Study, stores: Stores) -> None:
    log = Notes()
    prepare_study(replace(seven, methods=FOUR), stores, log)
    assert [note for note in log.notes if "can show no difference, however large" in note]


def test_validating_data_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--preset", "quick", "--set", "data.synthetic.cluster_sizes=[3,3]", "--set", "clustering.k=2"]
    assert main(["data", "validate", *few]) == 0
    assert "With 6 personas and 3 methods that could win the comparison can show no difference" in capsys.readouterr().out
    assert main(["data", "validate", "--preset", "quick", "--json"]) == 0
    power = json.loads(capsys.readouterr().out)["power"]
    assert (power["n_personas"], power["n_methods"]) == (30, 3)
    assert 0.5 < power["detectable"] < 1


def test_once_the_base_model_has_answered_it_is_said_in_points(seven: Study, stores: Stores) -> None:
    prepare_study(seven, stores, SilentLog())
    unknown = power_of_study(read_state(seven.name, stores))
    assert unknown is not None
    assert not unknown.is_estimated
    gate = Power(n_personas=3, n_items=6, item_sd=0.12, persona_sd=0.04, detectable_gain=0.05, false_pass=0.4, missed=0.2)
    stores.studies.save_metadata(seven.name, gate)
    known = power_of_study(read_state(seven.name, stores))
    assert known is not None
    assert known.is_estimated
    assert known.detectable is not None
    personas = stores.studies.dataset(seven.name).personas
    n_items = [sum(turn.role == "assistant" for d in p.of_split("test") for turn in d.turns) for p in personas]
    variance = sum(0.6 * (0.04**2 + 0.12**2 / n) for n in n_items) / 7
    assert known.detectable == pytest.approx(detectable_mean((variance / 7) ** 0.5, 6, n_units=7, n_tests=3))
    assert f"a true difference of {100 * known.detectable:.1f} points 80% of the time" in known.sentence
