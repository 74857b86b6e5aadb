"""Methods are data: the composition that answers each persona, and the adapters that it needs."""

import pytest

from clusterlora.config import resolve
from clusterlora.errors import BadSettings, UnknownName
from clusterlora.metadata import ChampionAdapter, ImportedAdapters, RefreshStart
from clusterlora.method_settings import MergeSettings
from clusterlora.methods import METHODS, controls
from clusterlora.methods.method import BASE, StudyView, composition_of, unified_adapter
from clusterlora.planning.ladder import OWN
from clusterlora.recipe import Recipe
from clusterlora.values import AdapterComposition, AdapterSpec, WeightedAdapter

PEOPLE = ("ana", "../../x", "cleo", "dan", "eve")
IMPORTED = ImportedAdapters(((0, "a0"),), "a1", ((PEOPLE[1], "a2"), (PEOPLE[4], "a3")))
"""The first cluster's adapter, everybody's, and those of two people, one in each cluster."""

UNIFIED = AdapterSpec(name="unified", persona_ids=PEOPLE, recipe=Recipe(), scope="everybody")
START = RefreshStart(
    study="mine",
    method="unified",
    adapters=(ChampionAdapter("unified", "a4", UNIFIED),),
    routes=tuple((p, composition_of(UNIFIED)) for p in PEOPLE[:4]),
    default=composition_of(UNIFIED),
    algorithm="responses",
    members=(PEOPLE[:2], PEOPLE[2:]),
    rung=OWN,
)
"""What a refresh goes on from, which does not know the last of the people."""


def view(**others: object) -> StudyView:
    plans = {
        name: METHODS[name].plan(StudyView(PEOPLE, (PEOPLE[:2], PEOPLE[2:]), Recipe(), Recipe(), None, {}, MergeSettings()))
        for name in others
    }
    return StudyView(PEOPLE, (PEOPLE[:2], PEOPLE[2:]), Recipe(), Recipe(epochs=7), None, plans, MergeSettings(), IMPORTED, start=START)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_every_persona_with_adapters_it_plans(name: str) -> None:
    plan = METHODS[name].plan(view(baseline=1, unified=1, per_persona=1, cluster=1))
    assert plan.method == name
    assert sorted(p for p, _ in plan.arms_by_persona) == sorted(PEOPLE)
    planned = {adapter.name for adapter in plan.adapters}
    assert {name for _, arms in plan.arms_by_persona for composition in arms for name in composition.adapter_names} <= planned
    assert {needed for a in plan.adapters for needed in a.needs} <= planned
    assert all(arms for _, arms in plan.arms_by_persona)


@pytest.mark.parametrize("name", METHODS)
def test_a_persona_id_never_becomes_part_of_an_adapters_name(name: str) -> None:
    names = [adapter.name for adapter in METHODS[name].plan(view(per_persona=1)).adapters]
    assert not any("/" in n or "ana" in n for n in names)
    assert len(names) == len(set(names))


def test_cluster_adapters_learn_from_their_members_with_the_recipe_that_passed_the_gate() -> None:
    plan = METHODS["cluster"].plan(view())
    assert [a.persona_ids for a in plan.adapters] == [PEOPLE[:2], PEOPLE[2:]]
    assert {a.recipe.epochs for a in plan.adapters} == {7}
    assert dict(plan.arms_by_persona)["dan"] == (AdapterComposition((WeightedAdapter("cluster-01"),)),)


def test_routing_starts_from_unified_and_has_each_other_methods_arm_once() -> None:
    plan = METHODS["selective_routing"].plan(view(baseline=1, unified=1, cluster=1))
    arms = dict(plan.arms_by_persona)["ana"]
    assert arms == (composition_of(unified_adapter(view())), BASE, AdapterComposition((WeightedAdapter("cluster-00"),)))
    assert plan.margin_se == 1.0


def test_a_hybrids_first_arm_is_unified_so_it_never_loses_on_val() -> None:
    plan = METHODS["hybrid"].plan(view())
    for _, arms in plan.arms_by_persona:
        assert arms[0] == AdapterComposition((WeightedAdapter("unified"),))
        assert [composition.adapters[1].weight for composition in arms[1:]] == [0.25, 0.5, 0.75, 1.0]


def test_a_residual_is_scaled_like_the_adapter_it_corrects() -> None:
    plan = METHODS["hybrid"].plan(view())
    unified, residual = plan.adapters[0].recipe, plan.adapters[1].recipe
    assert residual.alpha / residual.rank == unified.alpha / unified.rank
    assert residual.rank < unified.rank


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=r"unknown method 'clusters'; known: ") as refusal:
        METHODS["clusters"]
    assert set(str(refusal.value).partition("known: ")[2].split(", ")) == {*METHODS}


def test_what_a_study_registers_cannot_be_the_name_of_another_study() -> None:
    plans = [METHODS[name].plan(view(per_persona=1)) for name in METHODS if name not in controls() and not METHODS[name].needs_refresh]
    shared = [adapter for plan in plans for adapter in plan.adapters if not adapter.is_one_of_many]
    labels = {adapter.label for adapter in shared if adapter.frozen_adapter is None}
    labels |= {plan.method.replace("_", "-") for plan in plans if plan.adapters and all(a.is_one_of_many for a in plan.adapters)}
    assert {"unified", "cluster-00", "merged-01", "per-persona"} <= labels
    for label in sorted(labels):
        with pytest.raises(BadSettings, match=f"are registered as colx-{label} and the like"):
            resolve(overrides={"name": f"colx-{label}"})
