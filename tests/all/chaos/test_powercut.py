"""After a power cut at any moment, confirmed writes are on disk, visible files are complete, and the same command resumes the study."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clusterlora.adapters.stored import is_right
from clusterlora.engine import checkpoint
from clusterlora.ports.stores import Stores
from clusterlora.verify import LiveWork, verify
from clusterlora.wiring import from_environment
from tests.all.chaos.look import half_written
from tests.all.chaos.powercut import PEOPLE, Machine, machine, training_job

pytestmark = [pytest.mark.timeout(1800), pytest.mark.parametrize("names", [True, False], ids=["names are lost", "only contents are lost"])]


@pytest.fixture(scope="module")
def there(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if not shutil.which("gcc"):
        pytest.skip("there is no C compiler; apt-get install gcc")
    with machine(tmp_path_factory.mktemp("machine"), tiny_base_folder) as made:
        yield made


@pytest.fixture
def empty(there: Machine) -> Machine:
    there.reset()
    return there


def stores_on(there: Machine) -> Stores:
    return from_environment({"CLUSTERLORA_HOME": str(there.root / "studies")})


def missing(claims: tuple[str, ...], stores: Stores) -> list[str]:
    """Return what was said to be there and is not."""
    table = stores.folder("cut") / "results" / "table.csv"
    state = checkpoint.read(training_job(stores.adapters.scratch("0123456789abcdef")))
    recorded = stores.studies.adapters("cut")
    there = {f"table {line}" for line in range(1, 3) if table.exists() and table.read_text().startswith(("2", f"{line}"))}
    there |= {f"checkpoint {number}" for number in range(1, 3) if state is not None and state.losses[0] >= number}
    there |= {f"adapter {adapter.name}" for adapter in recorded if stores.adapters.holds(adapter.key) and is_right(adapter, stores)}
    assert len(recorded) == sum("adapter" in one for one in there), "an adapter was recorded before it was there"
    there |= set() if any(stores.adapters.holds(key) for key, name in PEOPLE.items() if name == "ben") else {"without ben"}
    return [what for what in claims[:-1] if what not in there]


def weights(stores: Stores) -> dict[str, dict[str, torch.Tensor]]:
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for adapter in stores.studies.adapters("cut"):
        folder = stores.adapters.path(adapter.key)
        assert folder is not None, adapter.name
        by_name[adapter.name] = load_file(folder / "adapter_model.safetensors")
    return by_name


def test_written_data_survives_a_power_cut_at_every_sync(empty: Machine, tmp_path: Path, *, names: bool) -> None:
    assert empty.run("create") == ("done",)
    empty.lose(names=names)
    stores_on(empty).studies.study("cut")
    created = shutil.copytree(empty.root / "studies", tmp_path / "created")
    at = 0
    while (claims := empty.run("files", at := at + 1))[-1] == "power":
        empty.lose(names=names)
        stores = stores_on(empty)
        assert half_written(stores) == (), f"sync {at}"
        assert missing(claims, stores) == [], f"sync {at}"
        empty.reset(created)
    assert claims[-1] == "done", claims
    assert at > 15, "most was never synced"


def test_a_study_resumes_after_every_power_cut_and_ends_with_the_same_weights(empty: Machine, *, names: bool) -> None:
    assert empty.run("study")[-1] == "done"
    uncut = weights(stores_on(empty))
    empty.reset()
    # Each life of the machine is longer than the one before.
    for at in (7, 19, 40, 80):
        assert empty.run("study", at)[-1] == "power"
        empty.lose(names=names)
        assert half_written(stores_on(empty)) == (), f"sync {at}"
    assert empty.run("study") == ("done",)
    stores = stores_on(empty)
    # Whose neighbour of a pass was saved before the cut is trained alone: in another order of additions.
    torch.testing.assert_close(weights(stores), uncut, rtol=1e-4, atol=1e-6)
    findings = verify(["cut"], stores, live=lambda _: LiveWork(), repair=True)
    assert [finding.what for finding in findings if not finding.repaired] == []
    assert half_written(stores) == ()
