"""Assigning new personas: the planted cluster is found again, what cannot be judged stays with unified, and refusals are one line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as examples_of
from hypothesis import strategies as st

from clusterlora.cli import main
from clusterlora.data.synthetic import generate, write_population
from clusterlora.errors import BadData, ClusterLoraError, UnknownName
from clusterlora.evaluation.assign import choose
from clusterlora.settings import SyntheticSettings
from clusterlora.stages.assign import assign, data_at, data_from, markdown, record
from clusterlora.stages.prepare import prepare_study
from clusterlora.values import Clustering
from tests.fixtures.stages import LOG
from tests.fixtures.studies import Planted

pytestmark = pytest.mark.numeric


def one_exchange(**changes: object) -> dict[str, object]:
    return {"persona_id": "ana", "prompt": "Make it cosy in here", "response": "Warm light at 40 %, Ana."} | changes


@pytest.mark.whole
def test_personas_of_planted_clusters_get_their_cluster_or_stay_with_unified(planted: Planted) -> None:
    assignments = {a.persona_id: a for a in assign("planted", data_at(str(planted.new)), planted.stores, LOG)}
    assert assignments.keys() == planted.cluster_by_newcomer.keys()
    nearest_is_planted = [assignments[p].choice.nearest == cluster for p, cluster in planted.cluster_by_newcomer.items()]
    assert sum(nearest_is_planted) >= 5
    leaving = {p: a for p, a in assignments.items() if a.choice.cluster is not None}
    assert len(leaving) >= 3
    for persona_id, assignment in leaving.items():
        assert assignment.choice.cluster == planted.cluster_by_newcomer[persona_id]
        assert assignment.adapter == f"cluster-{assignment.choice.cluster:02d}"
        assert assignment.choice.gain_in_standard_errors
        assert assignment.choice.gain_in_standard_errors > 1
        assert (assignment.folder / "adapter_model.safetensors").is_file()


@pytest.mark.whole
def test_the_margin_is_the_difference_of_the_likelihoods_that_are_reported(planted: Planted) -> None:
    for assignment in assign("planted", data_at(str(planted.new)), planted.stores, LOG):
        nll = dict(assignment.nll)
        assert assignment.choice.gain == pytest.approx(nll["unified"] - nll[f"cluster-{assignment.choice.nearest:02d}"])


def test_a_persona_with_one_exchange_is_accepted_and_stays_with_unified(planted: Planted) -> None:
    with data_from([one_exchange()], None) as data:
        (ana,) = assign("planted", data, planted.stores, LOG)
    assert (ana.persona_id, ana.n_dialogues, ana.adapter) == ("ana", 1, "unified")
    assert ana.choice.cluster is None
    assert ana.choice.standard_error is None
    assert json.loads(json.dumps(record(ana)))["gain_in_standard_errors"] is None
    assert "| ana | 1 |" in markdown("planted", [ana])


def test_repeated_dialogues_count_as_one_and_a_split_column_is_ignored(planted: Planted) -> None:
    rows = [one_exchange(split="test"), one_exchange(split="test", response="WARM light at 40 %, Ana!"), one_exchange(response="No.")]
    with data_from([row | {"dialogue_id": number} for number, row in enumerate(rows)], None) as data:
        (ana,) = assign("planted", data, planted.stores, LOG)
    assert ana.n_dialogues == 2


def test_one_dialogue_of_many_turns_moves_nobody(planted: Planted) -> None:
    turns = [{"role": role, "content": text} for text in ("Warm light.", "Cool light.", "No light.") for role in ("user", "assistant")]
    with data_from([{"persona_id": "ana", "messages": turns}], None) as data:
        (ana,) = assign("planted", data, planted.stores, LOG)
    assert (ana.n_dialogues, ana.adapter, ana.choice.standard_error) == (1, "unified", None)


@pytest.mark.whole
def test_nothing_of_the_new_personas_is_stored(planted: Planted) -> None:
    studies = planted.stores.studies
    before = (studies.dataset("planted"), studies.answers("planted"), studies.attempts("planted"), studies.routes("planted"))
    assign("planted", data_at(str(planted.new)), planted.stores, LOG)
    assert (studies.dataset("planted"), studies.answers("planted"), studies.attempts("planted"), studies.routes("planted")) == before


@pytest.mark.whole
def test_personas_of_a_folder_are_named_by_line_and_are_new_to_the_study(planted: Planted, tmp_path: Path) -> None:
    write_population(generate(SyntheticSettings(cluster_sizes=(1, 1), dialogues=3, seed=8)), tmp_path)
    assignments = assign("planted", data_at(str(tmp_path)), planted.stores, LOG)
    assert [a.persona_id for a in assignments] == ["new_000", "new_001"]


@pytest.mark.parametrize(
    ("study", "content", "message"),
    [
        ("planted", '{"persona_id": "ana", "prompt": "Light!"}', "new.jsonl:1"),
        ("planted", "not json", "new.jsonl:1"),
        ("planted", "", "is empty"),
        ("planted", None, "no such file"),
        ("nowhere", json.dumps(one_exchange()), "nowhere"),
        ("untrained", json.dumps(one_exchange()), "has not trained unified, cluster-00, cluster-01"),
    ],
)
def test_impossible_assignments_are_refused_in_one_line(
    planted: Planted, tmp_path: Path, study: str, content: str | None, message: str
) -> None:
    file = tmp_path / "new.jsonl"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(ClusterLoraError) as refusal:
        assign(study, data_at(str(file)), planted.stores, LOG)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_persona_of_the_study_is_refused(planted: Planted) -> None:
    persona_id = planted.stores.studies.dataset("planted").ids[0]
    with (
        data_from([one_exchange(persona_id=persona_id)], None) as data,
        pytest.raises(BadData, match=f"persona '{persona_id}' is in study"),
    ):
        assign("planted", data, planted.stores, LOG)


@pytest.mark.whole
def test_a_study_without_clusters_has_nothing_to_assign_to(planted: Planted) -> None:
    study = replace(planted.stores.studies.study("planted"), name="flat", methods=("unified",))
    prepare_study(study, planted.stores, LOG)
    planted.stores.studies.save_clustering("flat", Clustering("given", (planted.stores.studies.dataset("flat").ids,)))
    with data_from([one_exchange()], None) as data, pytest.raises(UnknownName, match="add cluster"):
        assign("flat", data, planted.stores, LOG)


@pytest.mark.parametrize(("rows", "path"), [([], None), ([one_exchange()], "new.jsonl")])
def test_dialogues_are_given_either_as_rows_or_as_a_path(rows: list[dict[str, object]], path: str | None) -> None:
    with pytest.raises(BadData, match="give one of the two"), data_from(rows, path):
        pass


@pytest.mark.whole
def test_the_command_prints_a_table_or_json_with_the_paths_of_the_adapters(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(planted.stores.home))
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["assign", "--name", "planted", "--data", str(planted.new)]) == 0
    shown = capsys.readouterr().out
    assert all(persona_id in shown for persona_id in planted.cluster_by_newcomer)
    assert str(planted.stores.home / "planted" / "models" / "lora_clusters") in shown
    assert main(["assign", "--name", "planted", "--data", str(planted.new), "--json"]) == 0
    assert {row["persona_id"] for row in json.loads(capsys.readouterr().out)} == planted.cluster_by_newcomer.keys()
    assert main(["assign", "--name", "planted", "--data", str(planted.known)]) == 1
    assert capsys.readouterr().err.count("error:") == 1


LOSSES = st.lists(st.lists(st.floats(0, 5), min_size=3, max_size=3), min_size=1, max_size=12).map(np.array)


@examples_of(LOSSES)
def test_a_persona_that_leaves_unified_gains_more_than_the_margin(losses: np.ndarray) -> None:
    choice = choose(losses)
    if choice.cluster is not None:
        gains = losses[:, 0] - losses[:, choice.cluster + 1]
        assert len(losses) > 1
        assert gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains))
    assert choice.gain == pytest.approx(float((losses[:, 0] - losses[:, choice.nearest + 1]).mean()))


def test_a_clear_gain_moves_a_persona_and_a_noisy_one_does_not() -> None:
    unified = np.full(4, 2.0)
    steady, unsteady = unified - [0.1, 0.12, 0.1, 0.11], unified - [3.0, -2.0, 1.0, -1.0]
    assert choose(np.stack([unified, unsteady, steady], axis=1)).cluster == 1
    choice = choose(np.stack([unified, unsteady, unified + 1], axis=1))
    assert (choice.cluster, choice.nearest, choice.gain) == (None, 0, 0.25)
    assert choose(np.stack([unified, unsteady, unified + 1], axis=1), margin_se=0).cluster == 0
