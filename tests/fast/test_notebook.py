"""clusterlora.Study: what a study found, for a notebook; and docs/study.ipynb, which runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import clusterlora
from clusterlora.errors import BadData, UnknownName
from clusterlora.ports.stores import Stores
from clusterlora.settings import Study
from tests.fixtures.stages import request_of, study_of_five

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def opened(finished_stores: Stores, seven: Study) -> clusterlora.Study:
    return clusterlora.Study(seven.name, stores=finished_stores)


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, clusterlora; print([name for name in ('torch', 'pandas', 'mlflow', 'sqlalchemy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_frames_are_the_files_that_the_comparison_wrote(opened: clusterlora.Study, finished_stores: Stores, seven: Study) -> None:
    folder = finished_stores.folder(seven.name) / "results"
    for frame, file in ((opened.table().reset_index(), "summary.csv"), (opened.scores(), "rows.csv")):
        written = pd.read_csv(folder / file, keep_default_na=False, na_values=[""])
        assert list(frame.columns) == list(written.columns)
        for column in written.select_dtypes("number").columns:
            assert frame[column].astype(float).tolist() == pytest.approx(written[column].tolist(), nan_ok=True)
    assert opened.sentence == json.loads((folder / "summary.json").read_text())["sentence"]


def test_adapters_assignments_and_curves_are_those_of_the_database(
    opened: clusterlora.Study, finished_stores: Stores, seven: Study
) -> None:
    adapters = opened.adapters()
    assert set(adapters.index) == {adapter.key for adapter in finished_stores.studies.adapters(seven.name)}
    assert adapters.loc[adapters.scope == "everybody", "n_personas"].tolist() == [7]
    assignments, clustering = opened.assignments(), finished_stores.studies.clustering(seven.name)
    assert clustering is not None
    assert assignments.cluster.to_dict() == clustering.cluster_by_persona()
    assert set(opened.routes().unified) == {"unified"}
    curves = opened.curves()
    assert curves.groupby("key").step.max().to_dict() == adapters.steps.to_dict()


def test_figures_and_contrasts_are_there(opened: clusterlora.Study) -> None:
    assert len(opened.figure().axes) >= 3
    assert len(opened.cluster_map().axes) == 1
    assert {"method", "other", "is_control"} <= set(opened.contrasts().columns)


def test_the_router_answers_as_the_evaluation_did(opened: clusterlora.Study, finished_stores: Stores, seven: Study) -> None:
    scores = opened.scores()
    of_method = scores[scores.method == "per_persona"]
    people = finished_stores.studies.dataset(seven.name).by_id()
    requests: list[dict[str, Any]] = [
        request_of(people[person], item) for person, item in zip(of_method.persona_id, of_method.item_id, strict=True)
    ]
    answers = opened.router("per_persona", device="cpu").answer(requests)
    assert [answer["text"] for answer in answers] == of_method.text.tolist()


def test_what_is_not_there_is_refused_with_what_is(finished_stores: Stores, tiny_base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="known: small"):
        clusterlora.Study("other", stores=finished_stores)
    with pytest.raises(UnknownName, match="no folder of studies"):
        clusterlora.Study("small", home=tmp_path / "elsewhere")
    study_of_five(tiny_base_folder, finished_stores)
    unfinished = clusterlora.Study("tried", stores=finished_stores)
    with pytest.raises(BadData, match="no test answers"):
        unfinished.table()
    assert unfinished.adapters().empty
    opened = clusterlora.Study("small", stores=finished_stores)
    with pytest.raises(UnknownName, match=r"no method 'clusters'; known: baseline, unified"):
        opened.router("clusters")


def test_a_folder_that_is_given_is_read_with_its_own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell may have the addresses of another installation, as of `clusterlora up --exports`."""
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    for folder in (theirs, own):
        folder.mkdir()
    monkeypatch.setenv("CLUSTERLORA_HOME", str(theirs))
    monkeypatch.setenv("CLUSTERLORA_DATABASE_URL", f"sqlite:///{theirs}/clusterlora.db")
    with pytest.raises(UnknownName, match="unknown study 'demo'"):
        clusterlora.Study("demo", home=own)
    assert (own / "clusterlora.db").is_file()
    monkeypatch.setenv("CLUSTERLORA_DATABASE_URL", f"sqlite:///{tmp_path}/beside.db")
    with pytest.raises(UnknownName, match="unknown study 'demo'"):
        clusterlora.Study("demo", home=theirs)
    assert (tmp_path / "beside.db").is_file(), "this folder's, as the shell says"


def test_services_of_another_user_are_no_matter_to_who_has_a_folder_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read_text = Path.read_text

    def refuse(path: Path, *args: Any, **options: Any) -> str:
        if path.name == "stack.json":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    (tmp_path / "own").mkdir()
    monkeypatch.setenv("CLUSTERLORA_STACK_HOME", str(tmp_path / "stack"))
    monkeypatch.setenv("CLUSTERLORA_HOME", str(tmp_path / "own"))
    monkeypatch.delenv("CLUSTERLORA_DATABASE_URL", raising=False)
    with pytest.raises(UnknownName, match="unknown study 'demo'"):
        clusterlora.Study("demo")
    told = capsys.readouterr().err
    assert "belongs to another user; give this shell servers of its own (CLUSTERLORA_STACK_HOME)" in told
    assert f"results are looked for in {tmp_path / 'own'}" in told


@pytest.mark.whole
def test_the_notebook_runs(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((REPOSITORY / "docs" / "study.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in notebook["cells"]), "it is stored without outputs"
    monkeypatch.chdir(tmp_path)
    # The notebook sets it for its own process.
    monkeypatch.setenv("CLUSTERLORA_HOME", "replaced")
    names: dict[str, Any] = {}
    exec(compile("\n".join(cells).replace("model.base=homelm", f"model.base={tiny_base_folder}"), "docs/study.ipynb", "exec"), names)
    assert names["answers"][0]["answered_by"] == "persona-0000"
    assert "somebody new" in names["answers"][1]["answered_by"]
