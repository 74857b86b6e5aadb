"""Only recorded weights are used: a damaged copy is named, quarantined, and fetched or trained again."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clusterlora.adapters.stored import is_stored, replace_damaged, stored_folder
from clusterlora.adapters.weights import weights_sha256
from clusterlora.errors import BadData, ServiceDown
from clusterlora.ports.run_log import SilentLog
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.settings import Study, prepared
from clusterlora.stores.files import FileAdapterStore
from clusterlora.values import AdapterSpec, TrainedAdapter
from tests.fixtures.memory import MemoryStudyStore, MemoryTracker

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
STUDY = "stored"


class Tracker(MemoryTracker):
    """A tracker that keeps one adapter in a folder, may lose it, and may be away."""

    def __init__(self, kept: Path, *, keeps: bool = True) -> None:
        super().__init__()
        self.kept, self.keeps, self.away = kept, keeps, False

    @property
    def keeps_adapters(self) -> bool:
        return self.keeps

    def download(self, uri: str, folder: Path) -> bool:  # noqa: ARG002  (it keeps one)
        if self.away:
            raise ServiceDown("MLflow does not answer")
        if not self.keeps or not self.kept.is_dir():
            return False
        shutil.copytree(self.kept, folder, dirs_exist_ok=True)
        return True


def peft_folder(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 1}')
    save_file({"a": torch.full((4,), value)}, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(peft_folder(tmp_path / "kept", 1.0))


@pytest.fixture
def stores(tracker: Tracker, tmp_path: Path) -> Stores:
    """Return the stores of a study with two adapters, the first of which the tracker has, too."""
    studies = MemoryStudyStore()
    adapters = FileAdapterStore(tmp_path / "adapters", lambda key, folder: key == KEY and tracker.download("", folder))
    studies.create_study(prepared(Study(name=STUDY), "float32"))
    for key, value in ((KEY, 1.0), (OTHER, 2.0)):
        kept = adapters.save(key, peft_folder(tmp_path / "offered" / key, value))
        spec = AdapterSpec(name=f"adapter-{value:g}", persona_ids=("p",), recipe=Recipe())
        uri = "runs:/1/adapters/unified" if key == KEY else None
        studies.save_adapter(STUDY, TrainedAdapter(key, spec.name, spec, 1, 1, 1.0, 2.0, 1.0, 9, "1", uri, weights_sha256(kept)))
    return Stores(studies, adapters, tracker, tmp_path)


def weights(stores: Stores, key: str = KEY) -> Path:
    folder = stores.adapters.path(key)
    assert folder is not None
    return folder / "adapter_model.safetensors"


def cut(length: int) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(file.read_bytes()[:length])


def multiply(file: Path) -> None:
    save_file({name: 100 * tensor for name, tensor in load_file(file).items()}, file)


DAMAGES = {
    "empty": cut(0),
    "one byte": cut(1),
    "in the header": cut(30),
    "in a tensor": lambda file: file.write_bytes(file.read_bytes()[:-6]),
    "one byte short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "other values": multiply,
    "gone": Path.unlink,
    "another adapter's": lambda file: shutil.copyfile(file.parents[1] / OTHER / file.name, file),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_copy_is_named_quarantined_and_fetched_again(
    damage: Callable[[Path], object], stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    file = weights(stores)
    right = file.read_bytes()
    damage(file)
    assert (stored_folder(stores, KEY) / file.name).read_bytes() == right
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"adapter adapter-1 ({KEY}) on this machine is not what was recorded; it is quarantined in" in warning
    assert warning.endswith("fetched again")
    assert len(list((file.parents[1] / ".quarantine").iterdir())) == 1


def test_an_adapter_whose_only_copy_is_damaged_is_deleted_so_that_it_is_retrained(stores: Stores, tracker: Tracker) -> None:
    tracker.kept = Path("nowhere")
    cut(0)(weights(stores))
    with pytest.raises(BadData, match=rf"adapter-1 \({KEY}\) was damaged here, and nobody has another copy; run the study again"):
        stored_folder(stores, KEY)
    assert stores.studies.adapter(KEY) is None
    assert not stores.adapters.holds(KEY)
    assert not is_stored(stores, KEY)


def test_the_next_run_finds_damage_before_it_plans_its_trainings(stores: Stores) -> None:
    for key in (KEY, OTHER):
        cut(0)(weights(stores, key))
    replace_damaged(STUDY, stores, SilentLog())
    assert [adapter.key for adapter in stores.studies.adapters(STUDY)] == [KEY], "what the tracker does not have is to be trained"
    assert stored_folder(stores, KEY) == stores.adapters.path(KEY)


def test_while_the_tracker_is_unavailable_nothing_is_changed(stores: Stores, tracker: Tracker) -> None:
    cut(0)(weights(stores))
    tracker.away = True
    with pytest.raises(ServiceDown):
        stored_folder(stores, KEY)
    assert stores.studies.adapter(KEY) is not None
    assert weights(stores).read_bytes() == b""


def test_without_a_tracker_to_ask_weights_that_it_may_have_are_not_forgotten(stores: Stores, tmp_path: Path) -> None:
    cut(0)(weights(stores))
    alone = replace(stores, tracker=Tracker(tmp_path, keeps=False))
    with pytest.raises(BadData, match=r"adapter-1 .* is not what was recorded; set MLFLOW_TRACKING_URI"):
        stored_folder(alone, KEY)
    assert stores.studies.adapter(KEY) is not None


def test_swapped_adapters_are_refused(stores: Stores) -> None:
    one, other = weights(stores), weights(stores, OTHER)
    right, swapped = one.read_bytes(), other.read_bytes()
    one.write_bytes(swapped)
    other.write_bytes(right)
    assert (stored_folder(stores, KEY) / one.name).read_bytes() == right
    with pytest.raises(BadData, match=r"adapter-2 .* was damaged here"):
        stored_folder(stores, OTHER)
