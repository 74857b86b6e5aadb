"""Preparing a study: decisions that stay for the whole study."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from clusterlora.errors import BadData, BadSettings
from clusterlora.metadata import Provenance
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.settings import DataSettings, ModelSettings, Study, SyntheticSettings, prepared
from clusterlora.stages import prepare as module
from clusterlora.stages.prepare import git_revision, prepare_study
from tests.fixtures.memory import MemoryRun, MemoryTracker
from tests.fixtures.stages import Notes


def study(base: Path, dtype: Literal["auto", "float32", "bfloat16"] = "auto") -> Study:
    data = DataSettings(train=1, val=1, test=1, synthetic=SyntheticSettings(cluster_sizes=(1, 2), dialogues=3))
    return Study(name="small", data=data, model=ModelSettings(base=str(base), dtype=dtype))


def parent(stores: Stores) -> MemoryRun:
    """Return the study's run in the tracker."""
    assert isinstance(stores.tracker, MemoryTracker)
    return stores.tracker.runs["small"]


def test_the_dtype_is_decided_once_and_a_relaunch_elsewhere_keeps_it(
    stores: Stores, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "faster_dtype", lambda _base: "bfloat16")
    prepare_study(study(tiny_base_folder), stores, SilentLog())
    monkeypatch.setattr(module, "faster_dtype", lambda _base: "float32")
    prepare_study(study(tiny_base_folder), stores, SilentLog())
    assert stores.studies.study("small").model.dtype == "bfloat16"
    with pytest.raises(BadSettings, match="dtype"):
        prepare_study(study(tiny_base_folder, "float32"), stores, SilentLog())


def test_a_dtype_that_a_slow_processor_decided_is_told_once_with_the_setting_that_changes_it(
    stores: Stores, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The base of tests is narrow.
    monkeypatch.setattr("clusterlora.models.base._BFLOAT16_WIDTH", 1)
    monkeypatch.setattr("clusterlora.models.base.multiplies_bfloat16", lambda _device: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    first, again, given = Notes(), Notes(), Notes()
    prepare_study(study(tiny_base_folder), stores, first)
    (line,) = (note for note in first.notes if "bfloat16" in note)
    assert line.startswith("model.dtype = auto took float32: this machine has no GPU")
    assert "--set model.dtype=bfloat16" in line
    assert stores.studies.study("small").model.dtype == "float32"
    prepare_study(study(tiny_base_folder), stores, again)
    prepare_study(replace(study(tiny_base_folder, "float32"), name="other"), stores, given)
    assert not any("bfloat16" in note for note in (*again.notes, *given.notes))


def test_a_configured_dtype_is_kept(stores: Stores, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "faster_dtype", lambda _base: "bfloat16")
    other = replace(study(tiny_base_folder, "float32"), name="other")
    prepare_study(other, stores, SilentLog())
    assert stores.studies.study("other") == prepared(other, "float32")


def test_refused_data_does_not_replace_the_provenance_of_the_stored_data(stores: Stores, tiny_base_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "people.jsonl"
    other = replace(study(tiny_base_folder), data=DataSettings(source="table", path=str(file), train=1, val=1, test=1))

    def write(n_personas: int) -> None:
        rows = [{"persona_id": f"p{p}", "prompt": f"light {d}", "response": f"{p}, {d}"} for p in range(n_personas) for d in range(3)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    write(2)
    prepared_study = prepare_study(other, stores, SilentLog())
    before = stores.studies.metadata("small", Provenance)
    assert before is not None
    assert (before.data_digest, before.n_personas, before.n_dialogues) == (prepared_study.digest, 2, 6)
    write(3)
    with pytest.raises(BadData, match="holds other data"):
        prepare_study(other, stores, SilentLog())
    assert stores.studies.metadata("small", Provenance) == before


def test_a_new_study_that_retrieves_and_measures_no_cost_is_refused_and_one_of_before_goes_on(
    stores: Stores, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = study(tiny_base_folder)
    retrieving = replace(one, methods=("unified", "retrieval"), evaluation=replace(one.evaluation, metrics=("embedding_similarity", "nll")))
    with pytest.raises(BadSettings, match="prompt_tokens, their cost, is missing"):
        prepare_study(retrieving, stores, SilentLog())
    with monkeypatch.context() as before:
        before.setattr(module, "problems_of_new", lambda _: ())
        prepare_study(retrieving, stores, SilentLog())
    prepare_study(retrieving, stores, SilentLog())


def test_without_git_the_revision_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision() is None


@pytest.mark.parametrize(("status", "tracked"), [("finished", "FINISHED"), ("failed", "FAILED"), ("running", "RUNNING")])
def test_a_single_step_leaves_a_study_in_the_status_it_is_in(stores: Stores, tiny_base_folder: Path, status: str, tracked: str) -> None:
    prepare_study(study(tiny_base_folder), stores, SilentLog())
    assert (stores.studies.status("small"), parent(stores).status) == ("running", "RUNNING")
    if status != "running":
        stores.studies.set_status("small", status)
        stores.tracker.end_study("small", status=status)
    prepare_study(study(tiny_base_folder), stores, SilentLog(), running=False)
    assert (stores.studies.status("small"), parent(stores).status) == (status, tracked)


def test_a_study_that_a_single_step_made_is_not_running(stores: Stores, tiny_base_folder: Path) -> None:
    prepare_study(study(tiny_base_folder), stores, SilentLog(), running=False)
    assert (stores.studies.status("small"), parent(stores).status) == ("created", "FINISHED")
    prepare_study(study(tiny_base_folder), stores, SilentLog())
    assert (stores.studies.status("small"), parent(stores).status) == ("running", "RUNNING")
