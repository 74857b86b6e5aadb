"""The power of a comparison is estimated before anything is trained."""

import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from clusterlora.cli import main
from clusterlora.comparison.power import enough_personas, expected_clusters, study_power
from clusterlora.comparison.sentence import claims_personalisation
from clusterlora.evaluation.statistics import cluster_robust_interval, detectable_mean, smallest_p
from clusterlora.gate.power import Power
from clusterlora.planning.study_state import read_state
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.settings import ClusteringSettings, Study
from clusterlora.stages.judge import power_of_study
from clusterlora.stages.prepare import prepare_study
from clusterlora.values import Clustering
from tests.fixtures.comparison import compared, evaluation
from tests.fixtures.stages import Notes

doctor_module = import_module("clusterlora.cli.doctor")

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
    assert sixteen.detectable == detectable_mean(0.05 / 4, 15, n_units=16, n_tests=5), "against the base model unified is tested, too"
    assert sixteen.sentence.endswith(" points 80% of the time, even in the 5 tests against the base model, which ask for the most.")
    without_base = study_power(FOUR[1:], "unified", 16, sd=0.05)
    assert without_base is not None
    assert without_base.detectable == detectable_mean(0.05 / 4, 15, n_units=16, n_tests=4)
    assert without_base.sentence.endswith(" points 80% of the time.")
    assert study_power(("baseline", "cluster"), "unified", 50) is None
    assert study_power(("baseline", "unified"), "unified", 50) is None


CONTROLS = ("random_cluster", "swapped_persona", "unified_longer", "unified_described", "unified_wide", "swapped_cluster")


@pytest.mark.parametrize(
    ("methods", "n_personas", "family", "n_tests", "enough"),
    [
        (("cluster",), 6, "base model", 2, 7),
        (("cluster", "per_persona", "hybrid"), 7, "base model", 4, 8),
        (("cluster", "per_persona", "hybrid"), 6, "methods", 3, 8),
        (("cluster", "per_persona", "random_cluster", "swapped_persona"), 7, "contrasts", 4, 8),
        (("cluster", "per_persona", *CONTROLS), 8, "contrasts", 12, 9),
    ],
)
def test_what_cannot_be_shown_at_all_is_said_before_and_found_so_after(
    methods: tuple[str, ...], n_personas: int, family: str, n_tests: int, enough: int
) -> None:
    methods = ("baseline", "unified", *methods)
    # Every method beats the next by twenty points for everybody.
    gains = {"cluster": 0.9, "per_persona": 0.8, "hybrid": 0.7, "unified": 0.5, "baseline": 0.1} | dict.fromkeys(CONTROLS, 0.3)
    before = study_power(methods, "unified", n_personas)
    assert before is not None
    assert (before.family, before.n_tests, before.enough, before.detectable) == (family, n_tests, enough, None)
    assert f"use at least {enough} personas" in before.sentence
    rows = evaluation({method: gains[method] for method in methods}, (n_personas,), noise=0.001)
    after = compared(rows)
    assert (after.champion is None) == (family != "contrasts")
    assert not claims_personalisation(after)
    if family == "contrasts":
        assert n_tests >= len(after.contrasts), "of per_persona there would be the most"
        assert f"can show no gain of {' or '.join(before.unclaimable)} to be personal" in before.sentence
    with_enough = study_power(methods, "unified", enough)
    assert with_enough is not None
    assert with_enough.detectable is not None
    more = compared(evaluation({method: gains[method] for method in methods}, (enough,), noise=0.001))
    assert more.champion == "cluster"
    assert claims_personalisation(more) == ("random_cluster" in methods)


def test_the_contrasts_limit_where_controls_are_many() -> None:
    power = study_power(("baseline", "unified", "cluster", *CONTROLS), "unified", 16)
    assert power is not None
    assert power.detectable == detectable_mean(1 / 4, 15, n_units=16, n_tests=6)
    assert power.sentence.endswith(", even in the 6 contrasts with controls and the runner-up, which ask for the most.")


@pytest.mark.parametrize(("sizes", "takes"), [((20, 20), 3.2), ((6, 14, 20), 1.3), ((8, 8, 8, 8, 8), 0.7)])
def test_a_claim_that_stands_on_the_adapters_of_few_clusters_takes_more_than_a_difference_does(
    sizes: tuple[int, ...], takes: float
) -> None:
    power = study_power(("baseline", "unified", "cluster", "random_cluster"), "unified", 40, clusters=[sizes])
    assert power is not None
    assert power.detectable is not None
    ((n_clusters, claimable),) = power.claimable
    assert n_clusters == len(sizes)
    assert claimable == pytest.approx(takes, rel=0.15)
    assert power.detectable == pytest.approx(0.5, abs=0.05)
    rng, cluster = np.random.default_rng(3), np.repeat(np.arange(len(sizes)), sizes)

    def claimed(gain: float) -> float:
        """Return how often the interval is above zero where people's differences are noise alone and no adapter has luck."""
        drawn = (cluster_robust_interval(rng.normal(gain, 1, 40), [cluster, rng.permutation(cluster)]) for _ in range(300))
        return float(np.mean([interval is not None and interval.low > 0 for interval in drawn]))

    assert claimed(claimable) == pytest.approx(0.8, abs=0.07)
    assert claimed(power.detectable) < 0.7
    assert power.sentence.endswith(
        f"; to show as often that the people of a cluster are alike takes {claimable:.2f} standard deviations with {n_clusters} clusters."
    )


def test_once_people_are_clustered_what_a_claim_takes_is_of_their_clusters(seven: Study, stores: Stores) -> None:
    study = replace(seven, methods=("unified", "cluster", "random_cluster"), clustering=ClusteringSettings())
    prepare_study(study, stores, SilentLog())
    state = read_state(study.name, stores)
    ids = state.dataset.ids
    for members in ((ids[:3], ids[3:]), (ids[:2], ids[2:4], ids[4:])):
        power = power_of_study(replace(state, clustering=Clustering("responses", members)))
        assert power is not None
        assert [n for n, _ in power.claimable] == [len(members)]
    open_number = power_of_study(state)
    assert open_number is not None
    assert [n for n, _ in open_number.claimable] == [2]


def test_a_claim_takes_no_more_where_no_adapters_are_shared_or_clusters_are_many() -> None:
    methods = ("baseline", "unified", "cluster", "random_cluster")
    for names, n, clusters in [
        (("baseline", "unified", "per_persona", "swapped_persona", "cluster"), 40, [(20, 20)]),
        (methods, 40, [(40,)]),
        (methods, 400, [(4,) * 100]),
    ]:
        power = study_power(names, "unified", n, clusters=clusters)
        assert power is not None
        assert not power.claimable
        assert power.detectable is not None
        assert "takes" not in power.sentence
    few = study_power(methods, "unified", 6, clusters=[(3, 3)])
    assert few is not None
    assert (few.detectable, few.claimable) == (None, ()), "nothing is shown at all"


@pytest.mark.parametrize(
    ("settings", "n_personas", "expected"),
    [
        (ClusteringSettings(sizes=(4, 9)), 13, ((4, 9),)),
        (ClusteringSettings(sizes=(4, 9)), 11, ((5, 6),)),
        (ClusteringSettings(k=3), 11, ((3, 4, 4),)),
        (ClusteringSettings(k=3), 2, ()),
        (ClusteringSettings(), 12, ((6, 6), (3, 3, 3, 3))),
        (ClusteringSettings(), 120, ((60, 60), (10,) * 12)),
        (ClusteringSettings(), 6, ((3, 3),)),
        # Smallest clusters that leave one cluster.
        (ClusteringSettings(), 5, ()),
        (ClusteringSettings(min_size=30), 40, ()),
        (ClusteringSettings(), 1, ()),
    ],
)
def test_before_people_are_clustered_the_sizes_are_those_that_may_come(
    settings: ClusteringSettings, n_personas: int, expected: tuple[tuple[int, ...], ...]
) -> None:
    assert expected_clusters(settings, n_personas) == expected


def test_the_doctor_says_it_of_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "_checks", lambda: iter(()))
    file = tmp_path / "study.toml"
    file.write_text(
        'name = "few"\nmethods = ["baseline", "unified", "cluster"]\n[data]\nsource = "synthetic"\n'
        "[data.synthetic]\ncluster_sizes = [3, 3]\n[clustering]\nk = 2\n"
    )
    assert main(["doctor", "--config", str(file), "--json"]) == 0
    (check,) = json.loads(capsys.readouterr().out)
    assert check["what"] == "power"
    assert "With 6 personas and 1 method that could win the comparison can name no champion" in check["found"]
    assert main(["doctor", "--config", str(file), "--set", "methods=['cluster']", "--json"]) == 0
    assert "nothing is compared with unified, so no method can be champion; add it to methods" in capsys.readouterr().out
    gone = ["--set", "data.source=table", "--set", f"data.path={tmp_path / 'gone.jsonl'}"]
    assert main(["doctor", "--config", str(file), *gone]) == 1
    told = capsys.readouterr().out
    assert told.startswith("BAD data ")
    assert f"run: clusterlora data validate --config {file} --set data.source=table --set data.path={tmp_path / 'gone.jsonl'}" in told


def test_preparing_a_study_says_it(seven: Study, stores: Stores) -> None:
    log = Notes()
    prepare_study(replace(seven, methods=FOUR), stores, log)
    assert [note for note in log.notes if "can show no difference, however large" in note]
    prepare_study(replace(seven, name="without", methods=("baseline", "cluster")), stores, log)
    assert log.notes[-1] == "nothing is compared with unified, so no method can be champion; add it to methods"


def test_validating_data_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--preset", "quick", "--set", "data.synthetic.cluster_sizes=[3,3]", "--set", "clustering.k=2"]
    assert main(["data", "validate", *few]) == 0
    assert "With 6 personas and 3 methods that could win the comparison can show no difference" in capsys.readouterr().out
    assert main(["data", "validate", "--preset", "quick", "--json"]) == 0
    power = json.loads(capsys.readouterr().out)["power"]
    assert (power["n_personas"], power["n_methods"]) == (30, 3)
    assert [n for n, _ in power["claimable"]] == [5], "the preset's clusters"
    open_k = ["--preset", "quick", "--set", "clustering.k=none", "--set", "clustering.sizes=none"]
    assert main(["data", "validate", *open_k]) == 0
    takes = r"alike takes 3\.\d\d standard deviations with 2 clusters and 0\.\d\d standard deviations with 10 clusters\."
    assert re.search(takes, capsys.readouterr().out)
    assert 0.5 < power["detectable"] < 1


def test_once_the_base_model_has_answered_it_is_said_in_points(seven: Study, stores: Stores) -> None:
    seven = replace(seven, methods=tuple(method for method in seven.methods if method != "baseline"))
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
