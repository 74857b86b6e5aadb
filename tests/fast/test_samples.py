"""Freshly trained adapters answer a val prompt for people to read; no adapter depends on it."""

from dataclasses import replace
from pathlib import Path

import pytest

from clusterlora.adapters.stored import stored_folder
from clusterlora.adapters.weights import weights_sha256
from clusterlora.ports.stores import Stores
from clusterlora.requests import TrainRequest
from clusterlora.settings import Study
from clusterlora.stages import samples
from clusterlora.stages.samples import FOLDER, latest_samples
from clusterlora.stages.train import train_group
from tests.fixtures.stages import Notes, missing_groups, plan_of, state_of, study_of_five
from tests.fixtures.studies import memory_stores


def trained(study: Study, stores: Stores) -> list[str]:
    log = Notes()
    (group,) = missing_groups(study, stores, ["unified"])
    train_group(TrainRequest(study_name=study.name, group=group, attempt=1, micro_batch=4), stores, log)
    return log.notes


@pytest.mark.whole
def test_a_training_shows_an_answer_to_a_val_prompt_in_its_log_its_run_and_the_studys_folder(
    tiny_base_folder: Path, tmp_path: Path
) -> None:
    stores = memory_stores(tmp_path)
    study = study_of_five(tiny_base_folder, stores)
    lines = trained(study, stores)
    (sample,) = [line for line in lines if line.startswith("unified after epoch 1 on val: ")]
    first = state_of(study, stores).dataset.by_id()[plan_of(study, stores).specs["unified"].persona_ids[0]].of_split("val")[0]
    assert repr(first.turns[0].text) in sample
    assert repr(first.turns[1].text) in sample
    assert latest_samples(stores.folder(study.name)) == (sample,)
    assert (stores.folder(study.name) / FOLDER / "unified" / "samples.md").is_file()


@pytest.mark.whole
def test_what_an_adapter_answers_is_shown_while_it_is_trained(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "SECONDS_BETWEEN", 0.0)
    stores = memory_stores(tmp_path)
    study = study_of_five(tiny_base_folder, stores, epochs=3)
    lines = trained(study, stores)
    about = [" ".join(line.split()[:6]) for line in lines if " on val: " in line or "loss" in line]
    assert [line.partition(" on val")[0] for line in about[:2]] == ["unified after epoch 1", "unified after epoch 2"]
    assert about[2].startswith("unified: loss")
    assert about[3].startswith("unified after epoch 3 on val")
    assert len(latest_samples(stores.folder(study.name))) == 1
    folders = sorted(folder.name for folder in (stores.folder(study.name) / FOLDER).iterdir())
    assert folders == ["unified", "unified-epoch-1", "unified-epoch-2"]


@pytest.mark.whole
def test_adapters_are_the_same_without_samples(tiny_base_folder: Path, tmp_path: Path) -> None:
    digests: list[str] = []
    for n_samples in (None, 1):
        stores = memory_stores(tmp_path / str(n_samples))
        study = study_of_five(tiny_base_folder, stores)
        study = replace(study, runtime=replace(study.runtime, samples=n_samples))
        stores.studies.create_study(state_of(study, stores).settings)
        assert any(" on val: " in line for line in trained(study, stores)) is (n_samples is not None)
        digests.append(weights_sha256(stored_folder(stores, plan_of(study, stores).keys["unified"])))
    assert digests[0] == digests[1]


@pytest.mark.whole
@pytest.mark.parametrize(("most", "asked"), [(5, [0, 1, 2, 3, 4]), (3, [0, 2, 4])])
def test_at_the_end_adapters_answer_not_too_many_and_the_first_are_shown_in_the_log(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, asked: list[int]
) -> None:
    monkeypatch.setattr(samples, "MOST_ASKED", most)
    stores = memory_stores(tmp_path)
    study = study_of_five(tiny_base_folder, stores)
    log = Notes()
    (group,) = missing_groups(study, stores, [f"persona-000{number}" for number in range(5)])
    train_group(TrainRequest(study_name=study.name, group=group, attempt=1, micro_batch=4), stores, log)
    shown = [line.partition(" after")[0] for line in log.notes if " on val: " in line]
    assert shown == [f"persona-000{number}" for number in asked[:2]]
    (table,) = (stores.folder(study.name) / FOLDER).glob("*/samples.md")
    assert [line.split(" | ")[0] for line in table.read_text().splitlines()[2:]] == [f"| persona-000{number}" for number in asked]
