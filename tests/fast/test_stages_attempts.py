"""Records of an attempt that finishes, runs out of memory or loses a service."""

import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterlora.adapters.stored import stored_folder
from clusterlora.adapters.weights import refuse_other_weights, sha256_in, weights_sha256
from clusterlora.errors import OutOfMemory, ServiceDown
from clusterlora.planning.attempts import next_request
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.ports.tracker import AdapterRun
from clusterlora.requests import TrainingGroup, TrainRequest
from clusterlora.settings import (
    Study,
)
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.keep import Keeper
from clusterlora.stages.prepare import prepare_study
from clusterlora.stages.train import train_group
from clusterlora.stores.files import FileAdapterStore
from clusterlora.values import Attempt
from tests.fixtures.memory import MemoryRun, MemoryTracker
from tests.fixtures.stages import missing_groups, study_of_five

UNIFIED = TrainingGroup("unified", "unified", ("unified",))


@pytest.fixture
def study(tiny_base_folder: Path, stores: Stores) -> Study:
    return study_of_five(tiny_base_folder, stores)


def train(study: Study, stores: Stores, group: TrainingGroup, number: int = 1) -> None:
    train_group(TrainRequest(study_name=study.name, group=group, micro_batch=2, attempt=number), stores, SilentLog())


def runs(stores: Stores) -> list[MemoryRun]:
    assert isinstance(stores.tracker, MemoryTracker)
    return [run for run in stores.tracker.runs.values() if "training_group" in run.tags]


@pytest.mark.whole
def test_a_finished_attempt_records_micro_batch_and_peak_memory_in_the_table_and_its_run(study: Study, stores: Stores) -> None:
    train(study, stores, UNIFIED)
    (attempt,) = stores.studies.attempts(study.name)
    (run,) = runs(stores)
    assert attempt.state == run.tags["outcome"] == "done"
    assert attempt.micro_batch == int(run.tags["micro_batch"]) == 2
    assert attempt.peak_memory_bytes
    assert attempt.peak_memory_bytes >= int(run.tags["peak_memory_bytes"]) > 10**7
    assert run.tags["peak_memory"].endswith(" GB")


@pytest.mark.whole
def test_a_trained_adapter_is_recorded_with_the_digest_of_its_weights(study: Study, stores: Stores) -> None:
    train(study, stores, UNIFIED)
    (adapter,) = stores.studies.adapters(study.name)
    folder = stores.adapters.path(adapter.key)
    assert folder is not None
    assert adapter.weights_sha256 == weights_sha256(folder)


@pytest.mark.whole
@pytest.mark.parametrize("length", [0, 9, -1], ids=["empty", "cut in the header", "one byte short"])
def test_the_next_run_retrains_adapters_that_a_power_cut_damaged(study: Study, stores: Stores, length: int) -> None:
    train(study, stores, UNIFIED)
    (trained,) = stores.studies.adapters(study.name)
    file = stored_folder(stores, trained.key) / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:length])
    assert missing_groups(study, stores, ("unified",)) == []
    prepare_study(study, stores, SilentLog())
    (group,) = missing_groups(study, stores, ("unified",))
    train(study, stores, group, number=2)
    assert (stored_folder(stores, trained.key) / file.name).read_bytes() == whole
    assert [adapter.weights_sha256 for adapter in stores.studies.adapters(study.name)] == [trained.weights_sha256]


class _Keeping(MemoryTracker):
    """A tracker from which other machines can have adapters, as long as their run is there."""

    @property
    def keeps_adapters(self) -> bool:
        return True

    def download(self, uri: str, folder: Path) -> bool:
        run_id, _, path = uri.removeprefix("memory:/").partition("/")
        uploaded = self.runs[run_id].uploads.get(path) if run_id in self.runs else None
        if uploaded is None:
            return False
        if uploaded.is_file():
            shutil.copyfile(uploaded, folder / uploaded.name)
        else:
            shutil.copytree(uploaded, folder, dirs_exist_ok=True)
        return True


def machine(home: Path, stores: Stores, tracker: MemoryTracker) -> Stores:
    """Return the stores of another machine: the same database and tracker, and no adapters yet."""

    def fetch(key: str, folder: Path) -> bool:
        adapter = stores.studies.adapter(key)
        if adapter is None or adapter.uri is None or not tracker.download(adapter.uri, folder):
            return False
        refuse_other_weights(key, adapter.weights_sha256, sha256_in(folder, key))
        return True

    return Stores(stores.studies, FileAdapterStore(home / "adapters", fetch), tracker, home)


@pytest.mark.whole
def test_retrained_lost_weights_become_the_recorded_ones(study: Study, stores: Stores, tmp_path: Path) -> None:
    tracker = _Keeping()
    train(study, machine(tmp_path / "first", stores, tracker), UNIFIED)
    (lost,) = stores.studies.adapters(study.name)
    del tracker.runs[str(lost.run_id)]
    again = replace(study, name="again")
    second, third = (machine(tmp_path / name, stores, tracker) for name in ("second", "third"))
    prepare_study(again, second, SilentLog())
    cluster_study(again.name, second, SilentLog())
    train(again, second, UNIFIED)
    (adapter,) = stores.studies.adapters(again.name)
    assert adapter.run_id != lost.run_id
    assert stores.studies.adapters(study.name) == (adapter,), "the first study has these weights, too"
    folder = third.adapters.path(adapter.key)
    assert folder is not None, "a third machine is told where they are"
    assert adapter.weights_sha256 == weights_sha256(folder)


@pytest.mark.whole
def test_if_two_machines_finish_an_adapter_the_first_is_recorded(study: Study, stores: Stores, tmp_path: Path) -> None:
    train(study, stores, UNIFIED)
    (adapter,) = stores.studies.adapters(study.name)
    trained_here = stored_folder(stores, adapter.key)
    trained_there = tmp_path / "there"
    shutil.copytree(trained_here, trained_there)
    (trained_there / "adapter_config.json").write_text("{}")
    stores.studies.forget_adapter(adapter.key)

    tracker = _Keeping()
    one, there = (machine(tmp_path / name, stores, tracker) for name in ("one", "other"))
    for on, folder in ((one, trained_here), (there, trained_there)):
        with on.tracker.adapter_run(study.name, name="unified", params={}, tags={}) as run, Keeper(study, run, on) as keeper:
            keeper.keep(adapter, folder)
    (recorded,) = stores.studies.adapters(study.name)
    for on in (one, there):
        assert recorded.weights_sha256 == weights_sha256(stored_folder(on, adapter.key)) == weights_sha256(trained_here)


@pytest.mark.whole
def test_without_a_tracker_to_ask_the_record_of_weights_in_one_stays(study: Study, stores: Stores, tmp_path: Path) -> None:
    train(study, stores, UNIFIED)
    (adapter,) = stores.studies.adapters(study.name)
    elsewhere = replace(adapter, run_id="abc", uri="runs:/abc/adapters/unified")
    stores.studies.save_adapter(study.name, elsewhere, instead_of=adapter)
    cut_off = Stores(stores.studies, FileAdapterStore(tmp_path / "cut off"), MemoryTracker(), tmp_path / "cut off studies")
    train(study, cut_off, UNIFIED, number=2)
    assert cut_off.adapters.holds(adapter.key)
    assert stores.studies.adapter(adapter.key) == elsewhere


def test_an_attempt_out_of_memory_records_the_same(study: Study, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    from clusterlora.engine import memory
    from clusterlora.engine import training as engine

    def hungry(*_: Any, **__: Any) -> Iterator[Any]:
        with memory.allocation_failures(micro_batch=2, doing="training"):
            bytearray(2**62)
        yield

    monkeypatch.setattr(engine, "train", hungry)
    with pytest.raises(OutOfMemory, match=r"at micro-batch 2, peak \d+\.\d\d GB"):
        train(study, stores, UNIFIED)
    (attempt,) = stores.studies.attempts(study.name)
    (run,) = runs(stores)
    assert attempt.state == run.tags["outcome"] == "out_of_memory"
    assert run.status == "FAILED"
    assert attempt.peak_memory_bytes


def test_the_memory_of_a_failed_allocation_is_freed_before_the_error_is_raised() -> None:
    from weakref import ref

    import torch

    from clusterlora.engine import memory

    tensors: list[ref[torch.Tensor]] = []

    def fill() -> None:
        activations = torch.zeros(1000)
        tensors.append(ref(activations))
        bytearray(2**62)

    def failure() -> OutOfMemory:
        try:
            with memory.allocation_failures(micro_batch=2, doing="training"):
                fill()
        except OutOfMemory as error:
            return error
        raise AssertionError("so much memory there is not")

    error = failure()
    assert isinstance(error.__cause__, MemoryError)
    assert tensors[0]() is None, "the error still holds what did not fit"


class _Absent(MemoryTracker):
    """A tracker that is away when a run is to begin, once."""

    away = True

    @contextmanager
    def adapter_run(self, study: str, **facts: Any) -> Generator[AdapterRun]:
        if self.away:
            self.away = False
            raise ServiceDown("MLflow does not answer")
        with super().adapter_run(study, **facts) as run:
            yield run


@pytest.mark.whole
def test_an_attempt_that_lost_a_service_stays_open_and_is_continued(study: Study, stores: Stores, tmp_path: Path) -> None:
    away = Stores(stores.studies, stores.adapters, _Absent(), tmp_path / "studies")
    with pytest.raises(ServiceDown):
        train(study, away, UNIFIED)
    assert [(a.number, a.state) for a in stores.studies.attempts(study.name)] == [(1, "running")]
    train(study, away, UNIFIED)
    assert [(a.number, a.state) for a in stores.studies.attempts(study.name)] == [(1, "done")]


@pytest.mark.parametrize("state", ["running", "failed", "crashed"])
def test_whoever_sets_more_than_fitted_elsewhere_is_heard_by_a_group_that_began_with_less(study: Study, stores: Stores, state: str) -> None:
    study = replace(study, recipe=replace(study.recipe, batch_size=16), runtime=replace(study.runtime, micro_batch=4))
    stores.studies.open_attempt(study.name, Attempt(group="unified", number=1, micro_batch=1, state="running"))
    if state != "running":
        stores.studies.close_attempt(study.name, "unified", 1, state=state)
    assert next_request(study, UNIFIED, stores).micro_batch == 4


@pytest.mark.parametrize("state", ["running", "failed", "crashed", "done", "out_of_memory"])
def test_whoever_lowers_the_micro_batch_is_heard_whatever_became_of_the_last_attempt(study: Study, stores: Stores, state: str) -> None:
    study = replace(study, recipe=replace(study.recipe, batch_size=16))
    stores.studies.open_attempt(study.name, Attempt(group="unified", number=1, micro_batch=16, state="running"))
    if state != "running":
        stores.studies.close_attempt(study.name, "unified", 1, state=state)
    assert next_request(study, UNIFIED, stores).micro_batch == (8 if state == "out_of_memory" else 16)
    for micro_batch in (2, 16):
        lower = replace(study, runtime=replace(study.runtime, micro_batch=micro_batch))
        assert next_request(lower, UNIFIED, stores).micro_batch == min(micro_batch, 8 if state == "out_of_memory" else 16)
