"""Adapters of every granularity come from elsewhere and become methods; the personal ones are merged per cluster without training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clusterlora.adapters.stored import stored_folder
from clusterlora.config import from_mapping
from clusterlora.engine.stacked import read_adapter
from clusterlora.errors import BadData, BadSettings
from clusterlora.method_settings import MergeSettings
from clusterlora.methods import METHODS
from clusterlora.methods.method import StudyView
from clusterlora.planning.study_state import read_state
from clusterlora.planning.training_groups import remaining_groups
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.requests import EvaluationRequest, MergeRequest
from clusterlora.settings import ClusteringSettings, DataSettings, EvaluationSettings, ModelSettings, Study
from clusterlora.stages.compare import compare_study
from clusterlora.stages.evaluate import evaluate
from clusterlora.stages.imported import OlderOutputs, import_outputs, settings_for_import
from clusterlora.stages.merge import merge
from tests.fixtures.imported import write_adapter, write_by_peft, write_people
from tests.fixtures.stages import LOG, Notes

PEOPLE = tuple(f"persona_{number:03d}" for number in range(4))


@pytest.fixture
def older(tmp_path: Path, tiny_base_folder: Path) -> tuple[Study, OlderOutputs]:
    """Four people in two clusters, each with an adapter (of two ranks), one adapter for everybody, and one per cluster."""
    data, splits, clusters = (tmp_path / name for name in ("people.jsonl", "splits.json", "clusters.json"))
    write_people(data, PEOPLE)
    splits.write_text(json.dumps({p: {"train": ["a", "b", "e"], "val": ["c"], "test": ["d", "f"]} for p in PEOPLE}))
    clusters.write_text(json.dumps({p: n % 2 for n, p in enumerate(PEOPLE)}))
    for number, p in enumerate(PEOPLE):
        write_adapter(tmp_path / "personal" / p, tiny_base_folder, seed=number, rank=2 + number % 2)
    for number in range(2):
        write_adapter(tmp_path / "clusters" / f"cluster_{number:02d}", tiny_base_folder, seed=10 + number)
    write_adapter(tmp_path / "unified", tiny_base_folder, seed=20)
    study = Study(
        name="theirs",
        methods=("baseline",),
        data=DataSettings(source="table", path=str(data), splits=str(splits)),
        model=ModelSettings(base=str(tiny_base_folder)),
        recipe=Recipe(rank=4, epochs=1),
        clustering=ClusteringSettings(k=2),
        evaluation=EvaluationSettings(max_new_tokens=4, bootstrap_draws=100),
    )
    outputs = OlderOutputs(clusters=clusters, adapters=tmp_path / "clusters", unified=tmp_path / "unified", personal=tmp_path / "personal")
    return study, outputs


def routes(study_name: str, stores: Stores, method: str) -> dict[str, tuple[str, ...]]:
    return {r.persona_id: r.composition.adapter_names for r in stores.studies.routes(study_name) if r.method == method}


@pytest.mark.whole
def test_adapters_of_every_granularity_become_methods_and_nothing_is_trained(older: tuple[Study, OlderOutputs], stores: Stores) -> None:
    study = settings_for_import(*older)
    assert study.methods == ("baseline", "imported_unified", "imported_cluster", "imported_per_persona", "imported_merge")
    imported = import_outputs(study, older[1], stores, LOG)
    assert (imported.adapters, imported.without_personal) == (7, ())
    assert imported == import_outputs(study, older[1], stores, LOG), "importing twice changes something"
    assert merge(MergeRequest(study_name=study.name), stores, LOG) == study.name
    assert list(remaining_groups(read_state(study.name, stores))) == []
    assert all(adapter.steps == 0 for adapter in stores.studies.adapters(study.name))
    evaluate(EvaluationRequest(study_name=study.name), stores, LOG)
    assert {result.method for result in compare_study(study.name, stores, LOG).methods} == set(study.methods)
    assert routes(study.name, stores, "imported_unified") == dict.fromkeys(PEOPLE, ("imported-unified",))
    assert routes(study.name, stores, "imported_per_persona") == {p: (f"imported-persona-{n:04d}",) for n, p in enumerate(PEOPLE)}
    assert routes(study.name, stores, "imported_merge") == {p: (f"imported-merged-{n % 2:02d}",) for n, p in enumerate(PEOPLE)}
    merged = {spec.name: spec.merge_of for spec in (adapter.spec for adapter in stores.studies.adapters(study.name)) if spec.merge_of}
    assert merged["imported-merged-01"] == ("imported-persona-0001", "imported-persona-0003")


@pytest.mark.whole
def test_imported_adapters_are_merged_in_another_way_as_a_study_of_their_own(older: tuple[Study, OlderOutputs], stores: Stores) -> None:
    study = settings_for_import(*older)
    import_outputs(study, older[1], stores, LOG)
    assert merge(MergeRequest(study_name=study.name, merging=MergeSettings(kind="ties")), stores, LOG) == "theirs-ties-0.2"
    assert {"imported-merged-00", "imported-merged-01"} <= {adapter.name for adapter in stores.studies.adapters("theirs-ties-0.2")}


@pytest.mark.whole
def test_the_merge_of_one_adapter_is_that_adapter_also_if_its_rank_is_larger_than_the_studys(
    older: tuple[Study, OlderOutputs], stores: Stores, tmp_path: Path, tiny_base_folder: Path
) -> None:
    for p in (PEOPLE[1], PEOPLE[3]):
        shutil.rmtree(tmp_path / "personal" / p)
    alone = write_adapter(tmp_path / "personal" / PEOPLE[1], tiny_base_folder, seed=5, rank=4 * older[0].recipe.rank)
    study = settings_for_import(*older)
    import_outputs(study, older[1], stores, LOG)
    merge(MergeRequest(study_name=study.name), stores, LOG)
    key = next(adapter.key for adapter in stores.studies.adapters(study.name) if adapter.name == "imported-merged-01")
    merged, imported = read_adapter(stored_folder(stores, key)), read_adapter(alone)
    for layer, (down, up) in imported.items():
        torch.testing.assert_close(merged[layer][1] @ merged[layer][0], up @ down, rtol=1e-4, atol=1e-4)


@pytest.mark.whole
def test_an_average_refuses_a_density_which_it_has_no_use_for(older: tuple[Study, OlderOutputs], stores: Stores) -> None:
    study = settings_for_import(*older)
    import_outputs(study, older[1], stores, LOG)
    with pytest.raises(BadSettings, match=r"merging.density = 0.5: an average keeps every change; leave it out"):
        merge(MergeRequest(study_name=study.name, merging=MergeSettings(density=0.5)), stores, LOG)
    with pytest.raises(BadSettings, match=r"merging.density = 0.5: an average"):
        from_mapping({"merging": {"density": 0.5}})


@pytest.mark.whole
def test_personal_adapters_that_are_no_sums_answer_as_themselves_and_are_not_merged(
    older: tuple[Study, OlderOutputs], stores: Stores, tmp_path: Path, tiny_base_folder: Path
) -> None:
    shutil.rmtree(tmp_path / "personal" / PEOPLE[1])
    write_by_peft(tmp_path / "personal" / PEOPLE[1], tiny_base_folder, use_dora=True, r=2, target_modules=["q_proj"])
    study, log = settings_for_import(*older), Notes()
    assert study.methods == ("baseline", "imported_unified", "imported_cluster", "imported_per_persona")
    import_outputs(study, older[1], stores, log)
    assert any(f"{PEOPLE[1]} is of a kind that is no sum of updates" in note for note in log.notes)
    assert list(remaining_groups(read_state(study.name, stores))) == []
    evaluate(EvaluationRequest(study_name=study.name), stores, LOG)
    assert {result.method for result in compare_study(study.name, stores, LOG).methods} == set(study.methods)


def test_who_has_no_personal_adapter_is_listed_and_answered_by_one_that_is_trained_here(
    older: tuple[Study, OlderOutputs], stores: Stores, tmp_path: Path
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "personal" / PEOPLE[2] / name).unlink()
    (tmp_path / "personal" / PEOPLE[2]).rmdir()
    study = settings_for_import(*older)
    assert import_outputs(study, older[1], stores, LOG).without_personal == (PEOPLE[2],)
    trained = [name for wave in remaining_groups(read_state(study.name, stores)) for group in wave for name in group.adapters]
    assert [name for name in trained if not name.startswith("imported-merged")] == ["persona-0002"]


@pytest.mark.whole
def test_folders_of_other_names_are_mapped_by_a_file(older: tuple[Study, OlderOutputs], stores: Stores, tmp_path: Path) -> None:
    (tmp_path / "personal" / PEOPLE[0]).rename(tmp_path / "personal" / "ana")
    study = settings_for_import(*older)
    with pytest.raises(BadData, match=r"ana: its name is no persona of the data .*--personal-map"):
        import_outputs(study, older[1], stores, LOG)
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"0": "ana", **{p: p for p in PEOPLE[1:]}}))
    assert import_outputs(study, replace(older[1], personal_map=names), stores, LOG).without_personal == ()
    names.write_text(json.dumps({"0": "bob"}))
    with pytest.raises(BadData, match="has no folder 'bob'"):
        import_outputs(study, replace(older[1], personal_map=names), stores, LOG)


def test_a_cluster_without_any_personal_adapter_is_refused_before_anything_is_written(
    older: tuple[Study, OlderOutputs], stores: Stores, tmp_path: Path
) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({PEOPLE[0]: PEOPLE[0], PEOPLE[2]: PEOPLE[2]}))
    study = settings_for_import(*older)
    with pytest.raises(BadData, match="none of the 2 personas of cluster 1 has a personal adapter"):
        import_outputs(study, replace(older[1], personal_map=names), stores, LOG)
    assert stores.studies.studies() == ()


def test_a_map_without_folders_is_refused(older: tuple[Study, OlderOutputs], tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="give both"):
        settings_for_import(older[0], replace(older[1], personal=None, personal_map=tmp_path / "names.json"))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.needs_import])
def test_a_method_of_imported_adapters_names_the_import_that_it_lacks(method: str) -> None:
    view = StudyView(PEOPLE, (PEOPLE[:2], PEOPLE[2:]), Recipe(), Recipe(), None, {}, MergeSettings())
    with pytest.raises(BadSettings, match=rf"method {method}.*clusterlora study import"):
        METHODS[method].plan(view)
