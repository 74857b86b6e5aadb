"""Adapters of single people are saved together, and none that was trained is lost when a training ends early."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterlora.adapters.stored import TrackerCopies, stored_folder, stored_weights
from clusterlora.adapters.weights import weights_sha256
from clusterlora.engine import training
from clusterlora.engine.kinds import read_weights
from clusterlora.errors import BadData, UnknownName
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.requests import TrainingGroup, TrainRequest
from clusterlora.settings import Study
from clusterlora.stages.adapter_folders import write_adapter_folders
from clusterlora.stages.keep import Keeper
from clusterlora.stages.train import train_group
from clusterlora.values import TrainedAdapter
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import plan_of, study_of_five

pytestmark = pytest.mark.whole


@pytest.fixture
def study(tiny_base_folder: Path, stores: Stores) -> Study:
    return study_of_five(tiny_base_folder, stores)


def people(study: Study, stores: Stores) -> tuple[str, ...]:
    return tuple(spec.name for spec in plan_of(study, stores).methods["per_persona"].adapters)


def train(study: Study, stores: Stores, names: Sequence[str], number: int = 1) -> None:
    group = TrainingGroup("fan-out-1-of-1", "per-persona", tuple(names))
    train_group(TrainRequest(study_name=study.name, group=group, micro_batch=2, attempt=number), stores, SilentLog())


def shards(stores: Stores, adapters: Sequence[TrainedAdapter]) -> set[Path | None]:
    return {stores.adapters.shard(adapter.key) for adapter in adapters}


def test_adapters_of_single_people_are_one_file_here_and_one_in_the_tracker(study: Study, stores: Stores) -> None:
    train(study, stores, ["unified", *people(study, stores)])
    adapters = stores.studies.adapters(study.name)
    unified, of_people = [a for a in adapters if a.name == "unified"], [a for a in adapters if a.name != "unified"]
    assert len(of_people) == 5
    (file,) = shards(stores, of_people)
    assert file is not None
    (uri,) = {adapter.uri for adapter in of_people}
    assert uri is not None
    assert uri.endswith(f"adapters/{file.name}")
    assert isinstance(stores.tracker, MemoryTracker)
    (run,) = (run for run in stores.tracker.runs.values() if "training_group" in run.tags)
    assert {path for path in run.uploads if path.startswith("adapters/")} == {"adapters/unified", f"adapters/{file.name}"}
    assert shards(stores, unified) == {None}
    exposed = sorted(path.name for path in (stores.folder(study.name) / "models").rglob("*") if path.is_dir())
    assert exposed == ["unified"], "people's folders are made when somebody asks for them"
    for adapter in adapters:
        assert adapter.weights_sha256 == weights_sha256(stored_folder(stores, adapter.key))
        read, own = stored_weights(stores, adapter.key).factors, read_weights(stored_folder(stores, adapter.key)).factors
        assert {name: (a.tolist(), b.tolist()) for name, (a, b) in read.items()} == {
            name: (a.tolist(), b.tolist()) for name, (a, b) in own.items()
        }


def test_what_is_finished_is_kept_when_the_others_fail(study: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    names = people(study, stores)
    trained = training.train

    def fails_after_two(*arguments: Any, **options: Any) -> Any:
        for number, result in enumerate(trained(*arguments, **options)):
            if number == 2:
                raise OSError("the disk is gone")
            yield result

    monkeypatch.setattr(training, "train", fails_after_two)
    with pytest.raises(OSError, match="the disk is gone"):
        train(study, stores, names)
    kept = stores.studies.adapters(study.name)
    assert len(kept) == 2
    monkeypatch.undo()
    train(study, stores, names, number=2)
    assert {adapter.name for adapter in stores.studies.adapters(study.name)} == set(names)
    assert {adapter for adapter in stores.studies.adapters(study.name) if adapter.name in {one.name for one in kept}} == set(kept)


def test_what_a_killed_process_had_trained_and_not_stored_is_taken_over(
    study: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = people(study, stores)
    monkeypatch.setattr(Keeper, "_save_together", lambda _: None)
    with pytest.raises(BadData):
        # The samples ask for what was not stored; a process that is killed does not even get there.
        train(study, stores, names)
    assert stores.studies.adapters(study.name) == ()
    monkeypatch.undo()
    asked: list[int] = []
    trained = training.train

    def counted(base: Any, jobs: Sequence[Any], **options: Any) -> Any:
        asked.append(len(jobs))
        return trained(base, jobs, **options)

    monkeypatch.setattr(training, "train", counted)
    train(study, stores, names, number=2)
    assert asked == [0], "nothing is trained again"
    adapters = stores.studies.adapters(study.name)
    assert {adapter.name for adapter in adapters} == set(names)
    assert all(adapter.steps > 0 and adapter.last_loss > 0 for adapter in adapters)
    assert stores.adapters.scratch_keys() == ()


def test_an_adapter_that_was_saved_alone_and_not_recorded_is_recorded_with_those_in_shards(
    study: Study, stores: Stores, tmp_path: Path
) -> None:
    names = people(study, stores)
    train(study, stores, names[:1])
    (first,) = stores.studies.adapters(study.name)
    (alone,) = write_adapter_folders(study.name, tmp_path / "out", stores)
    # As a process of before shards left it that ended between the two.
    stores.adapters.drop([first.key])
    stores.adapters.save(first.key, alone.folder)
    stores.studies.forget_adapter(first.key)
    train(study, stores, names, number=2)
    adapters = stores.studies.adapters(study.name)
    assert {adapter.name for adapter in adapters} == set(names)
    assert stores.adapters.scratch_keys() == ()
    (again,) = (adapter for adapter in adapters if adapter.key == first.key)
    assert again.weights_sha256 == weights_sha256(stored_folder(stores, first.key))
    assert again.uri is not None
    assert again.uri.endswith(f"adapters/{again.name}")


def test_folders_of_single_people_are_written_when_somebody_asks(study: Study, stores: Stores, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no trained adapters of single people; its methods are unified, per_persona"):
        write_adapter_folders(study.name, tmp_path / "out", stores)
    train(study, stores, ["unified", *people(study, stores)])
    written = write_adapter_folders(study.name, tmp_path / "out", stores)
    assert sorted(one.name for one in written) == sorted(people(study, stores))
    assert {one.folder for one in written} == {path.parent for path in (tmp_path / "out").rglob("adapter_config.json")}
    assert all(weights_sha256(one.folder) == stores.adapters.sha256(one.key) for one in written)
    first, *_ = stores.studies.dataset(study.name).ids
    (own,) = write_adapter_folders(study.name, tmp_path / "own", stores, persona_id=first)
    assert own.persona_ids == (first,)
    assert len(list((tmp_path / "own").rglob("adapter_model.safetensors"))) == 1
    with pytest.raises(UnknownName, match="nobody called 'zoe'"):
        write_adapter_folders(study.name, tmp_path / "out", stores, persona_id="zoe")


class _Shelf(MemoryTracker):
    """A tracker that keeps what is uploaded, and counts how often it is asked for it."""

    n_downloads = 0

    @property
    def keeps_adapters(self) -> bool:
        return True

    def download(self, uri: str, folder: Path) -> bool:
        self.n_downloads += 1
        run_id, _, path = uri.removeprefix("memory:/").partition("/")
        shutil.copyfile(self.runs[run_id].uploads[path], folder / Path(path).name)
        return True


@pytest.mark.parametrize("damaged", [False, True])
def test_a_shard_in_the_tracker_is_looked_at_once_for_all_that_it_holds(
    study: Study, stores: Stores, tmp_path: Path, damaged: bool
) -> None:
    shelf = _Shelf()
    tracked = replace(stores, tracker=shelf)
    shelf.start_study(study.name, params={}, tags={}, dataset=stores.studies.dataset(study.name))
    train(study, tracked, people(study, tracked))
    adapters = stores.studies.adapters(study.name)
    if damaged:
        (run,) = (run for run in shelf.runs.values() if "training_group" in run.tags)
        ((path, file),) = ((path, file) for path, file in run.uploads.items() if path.startswith("adapters/"))
        cut = tmp_path / "cut"
        cut.write_bytes(file.read_bytes()[:-1])
        run.uploads[path] = cut
    copies = TrackerCopies(tracked)
    assert [copies.has(adapter) for adapter in adapters] == [not damaged] * 5
    assert shelf.n_downloads == 1
