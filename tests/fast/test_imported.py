"""Results of older scripts continue as a study: splits, clusters, adapters and scores in their file formats."""

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from clusterlora.cli import main
from clusterlora.data.legacy_import import persona_resolver, read_clusters, read_results, read_splits
from clusterlora.data.load import load
from clusterlora.errors import BadData, BadSettings
from clusterlora.planning.training_groups import remaining_groups
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.requests import EvaluationRequest, TrainRequest
from clusterlora.settings import ClusteringSettings, DataSettings, EvaluationSettings, ModelSettings, Study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.imported import OlderOutputs, import_outputs, settings_for_import
from clusterlora.stages.train import train_group
from clusterlora.wiring import from_environment
from tests.fixtures.imported import write_adapter, write_people
from tests.fixtures.stages import state_of

PEOPLE = ("persona_000", "persona_001", "persona_002", "persona_003")
DIALOGUES: dict[str, tuple[str, ...]] = dict.fromkeys(PEOPLE, tuple("abcdef"))
LOG = SilentLog()


def written(folder: Path, name: str, value: object) -> Path:
    path = folder / name
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    "shape",
    [
        {"train": {p: ["a", "b"] for p in PEOPLE}, "validation": {p: ["c"] for p in PEOPLE}, "test": {p: ["d"] for p in PEOPLE}},
        {p: {"train": ["a", "b"], "val": ["c"], "test": ["d"]} for p in PEOPLE},
        {"splits": {str(n): {"train": [0, 1], "dev": [2], "test": [3]} for n in range(4)}},
    ],
    ids=["by split", "by persona", "by number and position, wrapped"],
)
def test_splits_mean_the_same_in_every_shape(tmp_path: Path, shape: dict[str, Any]) -> None:
    splits = read_splits(written(tmp_path, "edgesplits.json", shape), DIALOGUES)
    assert splits == {p: {"a": "train", "b": "train", "c": "val", "d": "test"} for p in PEOPLE}


@pytest.mark.parametrize(
    "shape",
    [
        {"persona_000": 0, "persona_001": 1, "persona_002": 0, "persona_003": 1},
        {"cluster_00": ["persona_000", "persona_002"], "cluster_01": ["persona_001", "persona_003"]},
        {"clusters": {"0": [0, 2], "1": [1, 3]}},
        [["persona_002", "persona_000"], ["persona_001", "persona_003"]],
        [{"persona_id": p, "cluster": n % 2} for n, p in enumerate(PEOPLE)],
    ],
    ids=["persona to cluster", "cluster to personas", "numbers, wrapped", "lists", "records"],
)
def test_clusters_mean_the_same_in_every_shape(tmp_path: Path, shape: Any) -> None:
    assert read_clusters(written(tmp_path, "cluster_map.json", shape), PEOPLE) == (
        ("persona_000", "persona_002"),
        ("persona_001", "persona_003"),
    )


def test_results_are_read_by_metric_and_persona_and_other_fields_are_ignored(tmp_path: Path) -> None:
    flat = written(tmp_path, "a.json", {"persona_000": 0.5, "persona_001": 0.75, "mean": 0.6})
    deep = written(tmp_path, "b.json", {"results": [{"persona_id": 2, "similarity": 0.9, "cluster": 1, "note": "x"}]})
    assert read_results(flat, PEOPLE) == {"score": {"persona_000": 0.5, "persona_001": 0.75}}
    assert read_results(deep, PEOPLE) == {"similarity": {"persona_002": 0.9}}


@pytest.mark.parametrize(
    ("read", "value", "says"),
    [
        (read_splits, ["a"], "is neither"),
        (read_splits, {"train": {"nobody": ["a"]}}, "persona 'nobody' is not in the data"),
        (read_splits, {"train": {"persona_000": ["z"]}}, "z is not a dialogue of persona 'persona_000'"),
        (read_splits, {"train": {"persona_000": [6]}}, "a position below 6"),
        (read_splits, {"train": {"persona_000": ["a"]}, "test": {"persona_000": ["a"]}}, "is in two splits"),
        (read_clusters, {"persona_000": "red"}, "is not a persona in a numbered cluster"),
        (read_clusters, dict.fromkeys(PEOPLE, 0), "its clusters are 0; number at least two, without gaps, from 0"),
        (read_clusters, {p: 2 * (n % 2) for n, p in enumerate(PEOPLE)}, "its clusters are 0, 2; number"),
        (read_clusters, {"persona_000": 0}, "3 personas of the data have no cluster (first: persona_001)"),
        (read_results, {"mean": 0.5}, "no number for any persona"),
        (read_results, "text", "contains str"),
    ],
)
def test_every_other_shape_is_refused_in_one_line_that_names_the_file(tmp_path: Path, read: Any, value: Any, says: str) -> None:
    path = written(tmp_path, "file.json", value)
    with pytest.raises(BadData, match=r"file\.json") as refusal:
        read(path, DIALOGUES if read is read_splits else PEOPLE)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_number_that_ends_several_ids_is_ambiguous() -> None:
    assert persona_resolver(("home_1", "work_01", "home_2"))("1") is None
    assert persona_resolver(("home_1", "work_01", "home_2"))(2) == "home_2"


@pytest.fixture
def older(tmp_path: Path, tiny_base_folder: Path) -> tuple[Study, OlderOutputs]:
    """Four people; a cluster map, splits, scores, and a trained adapter of cluster 0 only: somebody stopped in the middle."""
    data = tmp_path / "people.jsonl"
    write_people(data, PEOPLE)
    splits = written(tmp_path, "edgesplits.json", {p: {"train": ["a", "b", "e"], "val": ["c"], "test": ["d"]} for p in PEOPLE})
    clusters = written(tmp_path, "cluster_map.json", {p: n % 2 for n, p in enumerate(PEOPLE)})
    results = tmp_path / "results"
    results.mkdir()
    written(results, "cluster_00.json", {"persona_000": {"similarity": 0.81}, "persona_002": {"similarity": 0.83}})
    write_adapter(tmp_path / "lora_clusters" / "cluster_00", tiny_base_folder)
    study = Study(
        name="middle",
        methods=("baseline", "unified"),
        data=DataSettings(source="table", path=str(data), splits=str(splits)),
        model=ModelSettings(base=str(tiny_base_folder)),
        recipe=Recipe(rank=2, epochs=1),
        clustering=ClusteringSettings(k=2),
        evaluation=EvaluationSettings(max_new_tokens=4, bootstrap_draws=100),
    )
    return study, OlderOutputs(clusters=clusters, adapters=tmp_path / "lora_clusters", results=results)


@pytest.mark.whole
def test_an_imported_study_continues_with_its_adapters_compared_and_its_scores_listed(
    older: tuple[Study, OlderOutputs], stores: Stores, tmp_path: Path
) -> None:
    study = settings_for_import(older[0], older[1])
    assert study.methods == ("baseline", "unified", "imported_cluster")
    imported = import_outputs(study, older[1], stores, LOG)
    assert imported == import_outputs(study, older[1], stores, LOG), "importing twice changes something"
    assert (imported.personas, imported.clusters, imported.adapters, imported.results) == (4, 2, 1, 1)
    assert {d.id for d in stores.studies.dataset(study.name).personas[0].of_split("test")} == {"d"}
    trained: list[str] = []
    for group in chain.from_iterable(remaining_groups(state_of(study, stores))):
        train_group(TrainRequest(study_name=study.name, group=group, micro_batch=1, attempt=1), stores, LOG)
        trained += group.adapters
    assert sorted(trained) == ["cluster-01", "unified"], "an imported adapter is not trained, a missing one is"
    evaluate(EvaluationRequest(study_name=study.name), stores, LOG)
    routes = {r.persona_id: r.composition.adapter_names for r in stores.studies.routes(study.name) if r.method == "imported_cluster"}
    assert routes == {"persona_000": ("imported-00",), "persona_002": ("imported-00",)} | dict.fromkeys(PEOPLE[1::2], ("cluster-01",))
    comparison = compare_study(study.name, stores, LOG)
    assert {result.method for result in comparison.methods} == {"baseline", "unified", "imported_cluster"}
    beside = (tmp_path / "studies" / "middle" / "results" / "imported.md").read_text()
    assert "| cluster_00 | similarity | 2 | 0.82 |" in beside
    summary = (tmp_path / "studies" / "middle" / "results" / "summary.md").read_text()
    assert "0.82" not in summary
    assert "Imported scores" in (tmp_path / "studies" / "middle" / "results" / "report.html").read_text()


@pytest.mark.whole
def test_untrusted_files_are_not_imported(older: tuple[Study, OlderOutputs], stores: Stores) -> None:
    study, files = older
    with pytest.raises(BadSettings, match="may have seen the test items"):
        settings_for_import(replace(study, data=replace(study.data, splits=None)), files)
    study = settings_for_import(study, files)
    assert files.adapters is not None
    with pytest.raises(BadData, match=r"was made for base model .*, and the study's is 'homelm'; give --base-model"):
        import_outputs(replace(study, model=ModelSettings(base="homelm")), files, stores, LOG)
    (files.adapters / "cluster_01").mkdir()
    (files.adapters / "cluster_01" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(BadData, match="never pickles"):
        import_outputs(study, files, stores, LOG)
    assert stores.studies.studies() == ()


def test_splits_of_a_file_replace_ours_and_leave_out_what_they_do_not_list(older: tuple[Study, OlderOutputs]) -> None:
    dataset = load(older[0].data)
    assert {d.id: d.split for d in dataset.personas[3].dialogues} == {"a": "train", "b": "train", "e": "train", "c": "val", "d": "test"}


@pytest.mark.whole
def test_the_command_imports_and_the_study_goes_on_by_its_name_alone(
    older: tuple[Study, OlderOutputs], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "studies"))
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "no-stack"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study, files = older
    words = ["study", "import", "--name", "middle", "--data", str(study.data.path), "--splits", str(study.data.splits), "--json"]
    words += ["--clusters", str(files.clusters), "--adapters", str(files.adapters), "--results", str(files.results)]
    assert main([*words, "--base-model", str(study.model.base)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "study": "middle",
        "personas": 4,
        "clusters": 2,
        "adapters": 1,
        "results": 1,
        "without_personal": [],
    }
    assert from_environment().studies.status("middle") == "created", "what was imported is not running"
    assert main(["study", "run", "--name", "middle", "--show-settings"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["splits"] == study.data.splits
