"""What may go, how much it frees, and what never goes."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from clusterlora.errors import BadSettings, ServiceDown, UnknownName
from clusterlora.metadata import RegisteredChampion
from clusterlora.ports.model_registry import ModelVersion
from clusterlora.ports.stores import Stores
from clusterlora.prune import What, prunable
from clusterlora.results.tuning import cost_sentence
from clusterlora.settings import Rung, Study
from clusterlora.stages.cluster import cluster_study
from clusterlora.stages.keep import expose
from clusterlora.stages.prepare import prepare_study
from clusterlora.values import Attempt
from tests.fixtures.memory import MemoryTracker
from tests.fixtures.stages import LOG, missing_groups, plan_of, run, state_of, study_of_five, train_groups, train_named
from tests.fixtures.studies import memory_stores


class WithVersions(MemoryTracker):
    """A tracker whose registry holds one version with these adapters, of the study `tried`."""

    def __init__(self, *keys: str) -> None:
        super().__init__()
        self.keys = keys

    @property
    def keeps_adapters(self) -> bool:
        return True

    def versions(self, study: str) -> tuple[ModelVersion, ...]:
        return (ModelVersion("tried", "1", self.keys, whole=True, content="", uri=""),) if study == "tried" and self.keys else ()


def with_versions(stores: Stores, *keys: str) -> Stores:
    tracker = WithVersions(*keys)
    assert isinstance(stores.tracker, MemoryTracker)
    tracker.runs = stores.tracker.runs
    return replace(stores, tracker=tracker)


@pytest.fixture
def five(tiny_base_folder: Path, tmp_path: Path) -> tuple[Study, Stores]:
    """Return a finished study of five people with all of its adapters, and one that a rung tried."""
    stores = memory_stores(tmp_path)
    study = study_of_five(tiny_base_folder, stores)
    names = [spec.name for spec in plan_of(study, stores).specs.values()]
    train_named(study, stores, names)
    unified = next(adapter for adapter in stores.studies.adapters("tried") if adapter.name == "unified")
    spec = replace(unified.spec, name="cluster-00+slow", scope="cluster", cluster=0, rung="slow")
    stores.adapters.save("surplus", stores.adapters.path(unified.key) or tmp_path)
    stores.studies.save_adapter("tried", replace(unified, key="surplus", name=spec.name, spec=spec))
    stores.studies.set_status("tried", "finished")
    return study, stores


def keys_of(stores: Stores) -> dict[str, str]:
    return {adapter.name: adapter.key for adapter in stores.studies.adapters("tried")}


def test_what_a_rung_tried_may_go_and_what_the_study_uses_stays(five: tuple[Study, Stores]) -> None:
    study, stores = five
    before = keys_of(stores)
    (one,) = prunable(stores)
    assert (one.what, one.name, one.studies) == (What.RUNG, "cluster-00+slow (surplus)", ("tried",))
    folder = stores.adapters.path("surplus")
    assert folder is not None
    assert one.bytes_here == sum(file.stat().st_size for file in folder.iterdir())
    assert keys_of(stores) == before
    one.remove()
    assert not stores.adapters.holds("surplus")
    assert keys_of(stores) == {name: key for name, key in before.items() if key != "surplus"}
    assert prunable(stores) == ()
    assert missing_groups(study, stores, ["unified"]) == []


def test_nothing_goes_of_a_study_that_is_not_finished(five: tuple[Study, Stores]) -> None:
    _, stores = five
    stores.studies.set_status("tried", "failed")
    assert prunable(stores) == ()


@pytest.mark.whole
def test_an_adapter_of_a_registered_version_stays_even_of_a_study_that_is_given_up(five: tuple[Study, Stores]) -> None:
    study, stores = five
    kept = keys_of(stores)["unified"]
    stores = with_versions(stores, kept, "surplus")
    found = prunable(stores, give_up=["tried"])
    assert {one.what for one in found} == {What.STUDY}
    assert len(found) == 1, "people's adapters are in one shard"
    assert all(one.remove() for one in found)
    assert set(keys_of(stores).values()) == {kept, "surplus"}
    assert stores.adapters.holds(kept)
    # Run again, the study trains what went, and nothing else.
    again = missing_groups(study, stores, list(plan_of(study, stores).specs))
    assert {name for group in again for name in group.adapters} == set(plan_of(study, stores).specs) - {"unified"}
    train_groups(study, stores, again)
    assert set(plan_of(study, stores).keys.values()) <= set(keys_of(stores).values())


@pytest.mark.whole
def test_what_another_study_uses_stays(five: tuple[Study, Stores]) -> None:
    study, stores = five
    other = replace(study, name="other", methods=("unified",))
    prepare_study(other, stores, LOG)
    cluster_study("other", stores, LOG)
    train_named(other, stores, ("unified",))
    assert keys_of(stores)["unified"] not in " ".join(one.name for one in prunable(stores, give_up=["tried"]))


def test_a_running_study_is_not_given_up_and_leftovers_wait_for_it(five: tuple[Study, Stores]) -> None:
    _, stores = five
    stores.adapters.scratch(keys_of(stores)["unified"])
    assert What.CHECKPOINTS in {one.what for one in prunable(stores)}
    stores.studies.open_attempt("tried", Attempt("unified", 9, micro_batch=1, state="running"))
    assert What.CHECKPOINTS not in {one.what for one in prunable(stores)}
    with pytest.raises(BadSettings, match="study tried is running"):
        prunable(stores, give_up=["tried"])
    with pytest.raises(UnknownName, match="nonsense"):
        prunable(stores, give_up=["nonsense"])


def test_without_the_registry_nobody_can_say_what_versions_need(five: tuple[Study, Stores]) -> None:
    _, stores = five
    stores.studies.save_metadata("tried", RegisteredChampion("models:/tried/1"))
    with pytest.raises(ServiceDown, match="clusterlora up"):
        prunable(stores)
    assert prunable(with_versions(stores, "surplus")) == ()


def test_half_written_and_quarantined_adapters_go_with_their_bytes(five: tuple[Study, Stores]) -> None:
    _, stores = five
    stores.adapters.quarantine("surplus")
    old = stores.home.parent / "adapters" / ".incoming" / "old"
    old.mkdir(parents=True)
    (old / "adapter_model.safetensors").write_bytes(b"wei")
    found = {one.what: one for one in prunable(stores)}
    # A worker or a server may be fetching it.
    assert What.HALF_WRITTEN not in found
    for path in (*old.iterdir(), old):
        os.utime(path, (0, 0))
    found = {one.what: one for one in prunable(stores)}
    for what in (What.QUARANTINED, What.HALF_WRITTEN):
        assert found[what].bytes_here > 0
        assert found[what].remove()
    assert (stores.adapters.quarantined(), stores.adapters.half_written()) == ((), ())


def test_leftovers_stay_while_a_study_runs_that_trains_nothing(five: tuple[Study, Stores]) -> None:
    _, stores = five
    stores.adapters.quarantine("surplus")
    (one,) = (one for one in prunable(stores) if one.what == What.QUARANTINED)
    stores.studies.set_status("tried", "running")
    assert not one.remove()
    assert What.QUARANTINED not in {one.what for one in prunable(stores)}
    assert len(stores.adapters.quarantined()) == 1


@pytest.mark.whole
def test_what_a_study_needs_that_began_after_the_list_was_made_stays(five: tuple[Study, Stores]) -> None:
    study, stores = five
    before = keys_of(stores)
    found = prunable(stores, give_up=["tried"])
    other = replace(study, name="other", methods=("unified",))
    prepare_study(other, stores, LOG)
    cluster_study("other", stores, LOG)
    # It has linked nothing yet; its plan has the adapter.
    gone = {one.name for one in found if one.remove()}
    assert len(gone) == len(found) - 1
    assert set(keys_of(stores).values()) == {before["unified"]}
    train_named(other, stores, ("unified",))
    assert [adapter.key for adapter in stores.studies.adapters("other")] == [before["unified"]]
    assert stores.adapters.holds(before["unified"])


@pytest.mark.whole
def test_an_adapter_that_a_settled_study_has_linked_meanwhile_stays(five: tuple[Study, Stores]) -> None:
    study, stores = five
    other = replace(study, name="other", methods=("unified",))
    prepare_study(other, stores, LOG)
    cluster_study("other", stores, LOG)
    stores.studies.set_status("other", "finished")
    (one,) = prunable(stores)
    surplus = stores.studies.adapter("surplus")
    assert surplus is not None
    stores.studies.save_adapter("other", surplus)
    assert not one.remove()
    assert stores.adapters.holds("surplus")


def test_a_planned_adapters_folder_stays_when_the_one_before_refinement_goes(five: tuple[Study, Stores]) -> None:
    _, stores = five
    planned = next(one for one in stores.studies.adapters("tried") if one.name == "unified")
    weights = stores.adapters.path(planned.key)
    assert weights is not None
    folder = expose(stores, "tried", planned.spec, weights)
    earlier = replace(planned, key="earlier", spec=replace(planned.spec, persona_ids=planned.spec.persona_ids[:1]))
    stores.adapters.save("earlier", weights)
    stores.studies.save_adapter("tried", earlier)
    one = next(one for one in prunable(stores) if "earlier" in one.name)
    assert one.what == What.UNPLANNED
    assert one.bytes_here == sum(file.stat().st_size for file in weights.iterdir())
    assert one.remove()
    assert (folder / "adapter_model.safetensors").is_file()


def test_checkpoints_of_an_unfinished_training_stay_until_its_study_ends(five: tuple[Study, Stores]) -> None:
    _, stores = five
    # Its key is in no plan of today, as that of a trial.
    stores.adapters.scratch("trial")
    stores.studies.set_status("tried", "failed")
    assert prunable(stores) == ()
    assert "trial" in {one.name for one in prunable(stores, give_up=["tried"])}
    stores.studies.set_status("tried", "finished")
    (one,) = (one for one in prunable(stores) if one.what == What.CHECKPOINTS)
    assert one.remove()
    assert stores.adapters.scratch_keys() == ()


@pytest.mark.whole
def test_a_tuned_study_runs_on_after_its_trials_went(seven: Study, stores: Stores) -> None:
    study = replace(
        seven, methods=("unified", "per_persona"), tune=2, gate=replace(seven.gate, ladder=(Rung(name="warm-start", init="unified"),))
    )
    run(study, stores)
    stores.studies.set_status("small", "finished")
    found = prunable(stores)
    assert {one.what for one in found} == {What.TRIAL}
    assert all(one.remove() for one in found)
    left = {adapter.key for adapter in stores.studies.adapters("small")}
    answers = stores.studies.answers("small")
    run(study, stores)
    assert {adapter.key for adapter in stores.studies.adapters("small")} == left
    assert set(stores.studies.answers("small")) == set(answers)
    # What the trials took is no longer known, so it is not said.
    assert cost_sentence(state_of(study, stores)) == ""


@pytest.mark.whole
def test_folders_split_off_shards_may_go_and_are_made_again(five: tuple[Study, Stores]) -> None:
    _, stores = five
    person = next(adapter for adapter in stores.studies.adapters("tried") if adapter.spec.is_one_of_many)
    before = {one.name for one in prunable(stores)}
    folder = stores.adapters.path(person.key)
    assert folder is not None
    assert stores.adapters.shard(person.key) is not None
    (split,) = (one for one in prunable(stores) if one.name not in before)
    assert (split.what, split.name) == (What.SPLIT, "1 folder")
    assert split.bytes_here == sum(file.stat().st_size for file in folder.iterdir())
    assert split.remove()
    assert not folder.exists()
    assert stores.adapters.path(person.key) == folder
