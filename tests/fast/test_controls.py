"""A control differs from what it controls in exactly one thing, whatever the study's rung, start, recipe and seed."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterlora.method_settings import MergeSettings
from clusterlora.methods import controls
from clusterlora.methods.method import StudyView
from clusterlora.methods.unified_wide import unified_wide
from clusterlora.planning.ladder import OWN
from clusterlora.ports.stores import Stores
from clusterlora.recipe import Recipe
from clusterlora.report.data import ReportData
from clusterlora.results.report import report_data as collect
from clusterlora.settings import DataSettings, GateSettings, ModelSettings, Rung, Study, prepared
from clusterlora.values import AdapterComposition, AdapterSpec, Clustering, Criterion, Dataset, Dialogue, MethodPlan, Persona, Turn, Verdict
from tests.fixtures.stages import plan_of, state_of
from tests.fixtures.studies import memory_stores

DIFFERENCE = {
    "random_cluster": ("cluster", {"persona_ids"}),
    "swapped_persona": ("per_persona", {"composition.adapters"}),
    "swapped_cluster": ("cluster", {"composition.adapters"}),
    "unified_wide": ("unified", {"recipe.rank", "recipe.alpha"}),
    "unified_longer": ("unified", {"recipe.epochs"}),
    "baseline_described": ("baseline", {"composition.persona_in_prompt"}),
    "unified_described": ("unified", {"persona_in_prompt", "composition.persona_in_prompt"}),
}
"""What each control controls, and the only fields in which their plans may differ.

Text in the prompt is learned from and answered with; alpha grows with the rank, so that updates are scaled as before."""

LABELS = ("name", "variant_of", "rung", "folder")
"""What an adapter is called and where it lies."""

SETTINGS = st.builds(
    Study,
    name=st.just("controlled"),
    methods=st.permutations(("baseline", "unified", "cluster", "per_persona", *DIFFERENCE)).map(tuple),
    recipe=st.builds(
        Recipe,
        rank=st.sampled_from((2, 8)),
        epochs=st.integers(1, 6),
        patience=st.none() | st.just(2),
        learning_rate=st.sampled_from((1e-4, 5e-4)),
        seed=st.integers(0, 5),
    ),
    cluster_init=st.sampled_from(("base", "unified")),
    seeds=st.integers(1, 3),
)
RUNGS = st.builds(
    Rung,
    name=st.just("tried"),
    learning_rate=st.none() | st.just(2e-4),
    epochs=st.none() | st.integers(1, 9),
    init=st.sampled_from((None, "base", "unified")),
)
SIZES = st.lists(st.integers(1, 4), min_size=2, max_size=4)


def grouped(study: Study, sizes: list[int], base: Path, home: Path) -> tuple[Study, Stores]:
    """Return the study with this base model, and stores that hold it with its people grouped."""
    people = [f"p{number}" for number in range(sum(sizes))]
    dialogue = Dialogue("d", (Turn("user", "dim"), Turn("assistant", "dimmed")), split="train")
    stores = memory_stores(home)
    study = replace(study, data=DataSettings(), model=ModelSettings(base=str(base)))
    stores.studies.create_study(prepared(study, "float32"))
    stores.studies.save_dataset(study.name, Dataset(tuple(Persona(p, None, (dialogue,)) for p in people)))
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    members = tuple(tuple(people[end - size : end]) for end, size in zip(ends, sizes, strict=True))
    stores.studies.save_clustering(study.name, Clustering("responses", members))
    return study, stores


def differences(control: MethodPlan, subject: MethodPlan) -> set[str]:
    """Return the names of the fields in which two plans differ; what adapters are called is no difference, which one answers is."""
    changed: set[str] = set()
    for theirs, its in zip(subject.adapters, control.adapters, strict=True):
        changed |= {
            f.name for f in fields(AdapterSpec) if f.name not in (*LABELS, "recipe") and getattr(theirs, f.name) != getattr(its, f.name)
        }
        changed |= {f"recipe.{f.name}" for f in fields(Recipe) if getattr(theirs.recipe, f.name) != getattr(its.recipe, f.name)}

    def compositions(plan: MethodPlan) -> dict[str, list[AdapterComposition]]:
        number = {adapter.name: str(index) for index, adapter in enumerate(plan.adapters)}
        return {
            p: [replace(arm, adapters=tuple(replace(adapter, name=number[adapter.name]) for adapter in arm.adapters)) for arm in arms]
            for p, arms in plan.arms_by_persona
        }

    answers = compositions(control)
    for persona_id, arms in compositions(subject).items():
        for theirs, its in zip(arms, answers[persona_id], strict=True):
            for field in fields(AdapterComposition):
                # Who is in which group decides which adapter answers: one difference, not two.
                if getattr(theirs, field.name) != getattr(its, field.name) and not (field.name == "adapters" and "persona_ids" in changed):
                    changed.add(f"composition.{field.name}")
    return changed


def test_every_control_names_the_method_it_controls() -> None:
    assert set(DIFFERENCE) == set(controls())


@given(SETTINGS, RUNGS, SIZES)
def test_a_control_differs_from_what_it_controls_in_exactly_one_thing(
    tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory, study: Study, rung: Rung, sizes: list[int]
) -> None:
    study, stores = grouped(study, sizes, tiny_base_folder, tmp_path_factory.getbasetemp())
    plan = plan_of(study, stores, rung)
    for methods in plan.seeds:
        for control, (subject, allowed) in DIFFERENCE.items():
            changed = differences(methods[control], methods[subject])
            # Chance may group people as the clusters do.
            assert changed == allowed or (control == "random_cluster" and not changed), control
        groups, clusters = methods["random_cluster"].adapters, methods["cluster"].adapters
        assert [len(group.persona_ids) for group in groups] == [len(cluster.persona_ids) for cluster in clusters]
        clustered = [adapter for adapter in clusters if adapter.cluster is not None]
        wide, unified = methods["unified_wide"].adapters[0].recipe, methods["unified"].adapters[0].recipe
        assert wide.rank == sum(unified.rank for _ in clustered)
        assert wide.alpha / wide.rank == pytest.approx(unified.alpha / unified.rank)
        own = {p: adapter.name for adapter in clustered for p in adapter.persona_ids}
        swapped = {p: arms[0].adapter_names[0] for p, arms in methods["swapped_cluster"].arms_by_persona}
        assert set(swapped.values()) == set(own.values()), "every adapter answers somebody"
        assert not [p for p, name in swapped.items() if name == own[p]]
        assert {p for p, _ in methods["random_cluster"].arms_by_persona} == {p for p, _ in methods["cluster"].arms_by_persona}
    assert len({tuple(a.recipe.seed for a in methods["cluster"].adapters) for methods in plan.seeds}) == study.seeds


@pytest.mark.whole
@given(SETTINGS, SIZES)
def test_nobody_is_answered_by_their_own_adapter_once_they_are_swapped_and_every_adapter_answers_somebody(
    tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory, study: Study, sizes: list[int]
) -> None:
    study, stores = grouped(study, sizes, tiny_base_folder, tmp_path_factory.getbasetemp())
    for methods in plan_of(study, stores).seeds:
        owner = {adapter.name: adapter.persona_ids[0] for adapter in methods["per_persona"].adapters}
        answered_by = {p: owner[arms[0].adapter_names[0]] for p, arms in methods["swapped_persona"].arms_by_persona}
        assert set(answered_by) == set(answered_by.values()) == set(owner.values())
        assert not [p for p, other in answered_by.items() if p == other]


@pytest.mark.parametrize(("passed", "start"), [(OWN.name, "base"), ("tried", "unified")])
def test_the_report_says_what_the_clusters_of_the_decided_rung_start_from(
    tiny_base_folder: Path, tmp_path: Path, report_data: ReportData, passed: str, start: str
) -> None:
    ladder = (Rung(name="tried", epochs=9, init="unified"),)
    methods = tuple(result.method for result in report_data.comparison.methods)
    study, stores = grouped(Study(methods=methods, gate=GateSettings(ladder=ladder)), [2, 3], tiny_base_folder, tmp_path)
    for rung in dict.fromkeys((OWN.name, passed)):
        criterion = Criterion("above_unified", 0.01, 0.0, rung == passed, None, None, "")
        stores.studies.save_verdict(study.name, Verdict(rung, "cluster-00", (criterion,), n_personas=2, n_items=4))
    settings = dict(collect(state_of(study, stores), plan_of(study, stores), stores, report_data.comparison, ()).settings)
    assert settings["clusters start from"] == start
    assert settings["rung of the gate's ladder"].startswith(passed)
    assert ("epochs 9" in settings["rung of the gate's ladder"]) == (passed == "tried")


def test_unified_wide_has_the_rank_of_the_clusters_recipe_and_scales_its_update_as_unified_does() -> None:
    for kind, power in (("lora", 1.0), ("rslora", 0.5)):
        unified = Recipe(kind=kind, rank=8, alpha=24.0)
        view = StudyView(tuple("abc"), (("a", "b"), ("c",)), unified, replace(unified, rank=32), None, {}, MergeSettings())
        recipe = unified_wide(view).adapters[0].recipe
        assert recipe.rank == 64
        assert recipe.alpha / recipe.rank**power == pytest.approx(unified.alpha / unified.rank**power)
