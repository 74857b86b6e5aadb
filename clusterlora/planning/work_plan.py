"""The adapters a study needs, with their names and cache keys: from its methods to adapter specs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from clusterlora.adapters.cache_key import cache_keys, settings_in_keys
from clusterlora.clustering import PREREQUISITES
from clusterlora.errors import BadSettings, UnknownName
from clusterlora.gate.judged_cluster import judged_cluster
from clusterlora.metadata import ImportedAdapters, TrialRecipe
from clusterlora.methods import METHODS
from clusterlora.methods.held_out import HELD_OUT, held_out
from clusterlora.methods.method import NOTHING_IMPORTED, StudyView
from clusterlora.planning.continued import Continuation
from clusterlora.planning.ladder import GATED, OWN, RANDOM_PARTITION, REFERENCE, decided_rung
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.tuning import chosen
from clusterlora.settings import PreparedStudy, Rung
from clusterlora.values import AdapterComposition, AdapterSpec, Clustering, Dataset, MethodPlan, TrainedAdapter, digest


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """The adapters and methods that follow from the settings, the clustering and one rung of the ladder.

    `held_out` measures how well new people are assigned to clusters; it is not a method of the comparison. `judged` is the cluster that the
    gate judges, None where the study has no gate.
    """

    rung: Rung
    seeds: tuple[dict[str, MethodPlan], ...]
    specs: dict[str, AdapterSpec]
    keys: dict[str, str]
    answer_settings: str
    held_out: MethodPlan | None = None
    judged: int | None = None
    random_group: str | None = None
    """The adapter of a random group as large as the judged cluster, which the gate holds it against; None where it does not."""
    members: str = ""
    """The digest of who is in which cluster."""
    cluster_init: Literal["base", "unified"] = "base"
    """What the clusters' adapters start from."""
    step: int | None = None
    """The step of the tuning whose trials these are; None for the study's own work."""

    @property
    def methods(self) -> dict[str, MethodPlan]:
        """The methods as trained with the study's own seed, which are judged, registered and served."""
        return self.seeds[0]

    def trained_by(self) -> dict[str, str]:
        """Return for each adapter the first method that trains it; unified is a method of its own even if others start from it."""
        plans = [*(plan for methods in self.seeds for plan in methods.values()), *((self.held_out,) if self.held_out else ())]
        first = {one.name: plan.method for plan in reversed(plans) for one in plan.adapters}
        return {name: REFERENCE if self.specs[name].label == REFERENCE else method for name, method in first.items()}

    def with_needs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return these adapters and those they start from or are merged from, dependencies first."""
        order: dict[str, None] = {}

        def add(name: str) -> None:
            for needed in self.specs[name].needs:
                add(needed)
            order[name] = None

        for name in names:
            add(name)
        return tuple(order)

    def composition_key(self, composition: AdapterComposition) -> str:
        """Return the cache key of a composition's answers: its adapters' keys and weights, its prompt, and the answer settings."""
        adapters = [(self.keys[adapter.name], adapter.weight) for adapter in composition.adapters]
        prompt: list[object] = [composition.shots, composition.persona_in_prompt]
        if composition.ranking != "embedding":
            prompt.append(composition.ranking)
        if composition.shots_from == "cluster":
            prompt.append(self.members)
        return digest([self.answer_settings, adapters, *prompt])


def work_plan(state: StudyState, rung: Rung | None = None) -> WorkPlan:
    """Return the plan under a rung (by default the decided one).

    Before the personas are clustered, it is the plan of the adapters that the clustering itself reads.

    Raises:
        BadSettings: the personas are not clustered yet, and their clustering reads no adapters.
    """
    from clusterlora.models.base import base_revision

    study, clustering = state.settings, state.clustering
    if clustering is None:
        if study.clustering.algorithm not in PREREQUISITES:
            raise BadSettings(f"study {study.name} has no clustering; run its cluster step first")
        study = replace(study, methods=(PREREQUISITES[study.clustering.algorithm],), seeds=1)
        clustering = Clustering(study.clustering.algorithm, ())
    needing = [name for name in study.methods if METHODS[name].needs_import]
    if needing and state.imported is None:
        raise BadSettings(
            f"study {state.name} compares {needing[0]}, but nothing was imported; run: clusterlora study import --name {state.name} ..."
        )
    imported = state.imported or NOTHING_IMPORTED
    recipes = tuple(chosen(state.tuning).items())
    anew = state.regrouping is not None and state.regrouping.anew
    goes_on = Continuation(state.start, state.news, study.refresh, anew) if state.start and state.news else None
    revision = base_revision(study.model.base)
    return _work_plan(study, state.dataset, clustering, rung or decided_rung(state), revision, imported, recipes, goes_on)


def study_view(
    study: PreparedStudy,
    clustering: Clustering,
    imported: ImportedAdapters,
    recipes: Mapping[str, TrialRecipe],
    persona_ids: tuple[str, ...],
) -> StudyView:
    """Return what methods may depend on; `recipes` are those that are tried or were chosen for methods, which else have the study's own."""
    of_clusters = recipes.get(GATED, TrialRecipe(study.recipe, study.cluster_init))
    own, init = of_clusters.recipe, of_clusters.init
    if init == "unified":
        # What goes on from an adapter has its form.
        start = recipes[REFERENCE].recipe if REFERENCE in recipes else study.recipe
        own = replace(own, rank=start.rank, alpha=start.alpha, target_modules=start.target_modules)
    return StudyView(
        persona_ids,
        clustering.members,
        study.recipe,
        own,
        REFERENCE if init == "unified" else None,
        {},
        study.merging,
        imported,
        study.retrieval,
        {method: one.recipe for method, one in recipes.items()},
    )


def recipes_on(rung: Rung, study: PreparedStudy, recipes: Mapping[str, TrialRecipe]) -> Mapping[str, TrialRecipe]:
    """Return the recipes with the one that a rung tries for `cluster`.

    The gate's ladder is a tuning of that method alone: its rungs are trials, one after another, and the gate's verdict on val stands in
    place of their val loss.
    """
    if rung == OWN:
        return recipes
    before = recipes.get(GATED, TrialRecipe(study.recipe, study.cluster_init))
    recipe = replace(
        before.recipe, learning_rate=rung.learning_rate or before.recipe.learning_rate, epochs=rung.epochs or before.recipe.epochs
    )
    return {**recipes, GATED: TrialRecipe(recipe, rung.init or before.init)}


def forget_plans() -> None:
    """Drop the plans that this process keeps, with the data that they are of: they are made again when they are needed."""
    _work_plan.cache_clear()


@lru_cache(maxsize=8)
def _work_plan(
    study: PreparedStudy,
    dataset: Dataset,
    clustering: Clustering,
    rung: Rung,
    revision: str,
    imported: ImportedAdapters,
    recipes: tuple[tuple[str, TrialRecipe], ...],
    goes_on: Continuation | None = None,
) -> WorkPlan:
    view = study_view(study, clustering, imported, recipes_on(rung, study, dict(recipes)), dataset.ids)
    if goes_on is not None:
        view = replace(view, start=goes_on.start)
    names = (*study.methods, REFERENCE) if GATED in study.methods and REFERENCE not in study.methods else study.methods
    seeds = tuple(_methods_of_seed(view, names, rung, seed) for seed in range(study.seeds))
    if goes_on is not None:
        seeds = tuple(goes_on.plans(methods, dataset) for methods in seeds)
    share = study.assignment.held_out_share
    held_out_plan = held_out(view, share, study.assignment.seed) if share else None
    if held_out_plan is not None:
        held_out_plan = _on_rung(held_out_plan, rung)
    plans = [*(plan for methods in seeds for plan in methods.values()), *((held_out_plan,) if held_out_plan else ())]
    specs = _specs_by_name(plans)
    keys = cache_keys(tuple(specs.values()), dataset, base_revision=revision, model=study.model)
    answers = answer_settings(study, dataset, revision)
    judged = judged_cluster(clustering.sizes, study.clustering) if GATED in names else None
    asks = study.gate.above_random_group is not False and judged is not None and RANDOM_PARTITION in names
    group = next(spec.name for spec in seeds[0][RANDOM_PARTITION].adapters if spec.cluster == judged) if asks else None
    init = "unified" if view.cluster_init else "base"
    return WorkPlan(rung, seeds, specs, dict(keys), answers, held_out_plan, judged, group, digest(clustering.members), init)


def answer_settings(study: PreparedStudy, dataset: Dataset, revision: str) -> str:
    """Return the digest of everything but adapters and prompt that an answer depends on."""
    evaluation = study.evaluation
    return digest([revision, settings_in_keys(study.model), evaluation.max_new_tokens, evaluation.metrics, dataset.digest])


def _methods_of_seed(view: StudyView, names: Sequence[str], rung: Rung, seed: int) -> dict[str, MethodPlan]:
    """Return all methods as one training seed makes them. The first is the study's own; adapters of others carry the seed's number."""
    view = replace(
        view,
        recipe=replace(view.recipe, seed=view.recipe.seed + seed),
        cluster_recipe=replace(view.cluster_recipe, seed=view.cluster_recipe.seed + seed),
    )
    alone = {name: _on_rung(METHODS[name].plan(view), rung) for name in names}
    choosable = {name: plan for name, plan in alone.items() if not (METHODS[name].is_control or METHODS[name].needs_refresh)}
    # A method that chooses among the others sees all their plans, whatever the order of the methods.
    methods = {
        name: _on_rung(METHODS[name].plan(replace(view, others={other: plan for other, plan in choosable.items() if other != name})), rung)
        for name in names
    }
    return {name: with_variants(plan, [replace(spec, seed=seed) for spec in plan.adapters]) for name, plan in methods.items()}


def _on_rung(plan: MethodPlan, rung: Rung) -> MethodPlan:
    """Return the plan with the rung on the clusters' adapters, which it changes, so that a name means one set of weights in a study."""
    if plan.method not in (GATED, HELD_OUT, RANDOM_PARTITION) or rung == OWN:
        return plan
    return with_variants(plan, [replace(spec, rung=rung.name) if spec.scope == "cluster" else spec for spec in plan.adapters])


def variant_name(label: str, rung: str | None, seed: int) -> str:
    """Return the name in the study of an adapter trained under a rung and with a training seed."""
    return label + (f"+{rung}" if rung else "") + (f".s{seed}" if seed else "")


def with_variants(plan: MethodPlan, variants: Sequence[AdapterSpec]) -> MethodPlan:
    """Return the plan with its adapters replaced by these variants, in order, under names with rung and seed."""
    new = {
        spec.name: variant_name(variant.label, variant.rung, variant.seed) for spec, variant in zip(plan.adapters, variants, strict=True)
    }

    def composition(old: AdapterComposition) -> AdapterComposition:
        return replace(old, adapters=tuple(replace(adapter, name=new.get(adapter.name, adapter.name)) for adapter in old.adapters))

    def spec(old: AdapterSpec) -> AdapterSpec:
        return replace(
            old,
            name=new[old.name],
            variant_of=old.label if new[old.name] != old.label else None,
            init_from=new.get(old.init_from, old.init_from) if old.init_from else None,
            frozen_adapter=new.get(old.frozen_adapter, old.frozen_adapter) if old.frozen_adapter else None,
            merge_of=tuple(new.get(merged, merged) for merged in old.merge_of),
        )

    return replace(
        plan,
        adapters=tuple(spec(variant) for variant in variants),
        arms_by_persona=tuple((p, tuple(composition(s) for s in compositions)) for p, compositions in plan.arms_by_persona),
    )


def _specs_by_name(plans: Sequence[MethodPlan]) -> dict[str, AdapterSpec]:
    """Return the adapters of all plans. Raises BadSettings where two plans call different ones alike."""
    specs: dict[str, AdapterSpec] = {}
    first: dict[str, str] = {}
    for plan in plans:
        for spec in plan.adapters:
            if specs.setdefault(spec.name, spec) != spec:
                raise BadSettings(
                    f"methods {first[spec.name]} and {plan.method} plan different adapters called {spec.name!r}; give one another name"
                )
            first.setdefault(spec.name, plan.method)
    return specs


def trained_adapters(state: StudyState, plan: WorkPlan) -> dict[str, TrainedAdapter]:
    """Return the plan's adapters that are trained, by name in the plan. Two names may stand for one set of weights."""
    adapter_by_key = {adapter.key: adapter for adapter in state.adapters}
    return {name: adapter_by_key[key] for name, key in plan.keys.items() if key in adapter_by_key}


def cluster_adapters(plan: WorkPlan) -> tuple[str, ...]:
    """Return the names of the gated method's adapters in the order of their clusters; none when it is not among the methods."""
    adapters = plan.methods[GATED].adapters if GATED in plan.methods else ()
    by_cluster = {spec.cluster: spec.name for spec in adapters if spec.cluster is not None}
    return tuple(by_cluster[number] for number in sorted(by_cluster))


def gate_adapters(plan: WorkPlan) -> tuple[str, ...]:
    """Return the names of the adapters that the gate needs: the candidate, unified, and the random group's where it asks for one."""
    return (*judged_adapters(plan), *((plan.random_group,) if plan.random_group else ()))


def judged_adapters(plan: WorkPlan, cluster: int | None = None) -> tuple[str, str]:
    """Return the names of (the candidate: the cluster's adapter, the reference: unified), by default of the cluster that the gate judges.

    Raises:
        UnknownName: the plan has no such cluster, or nothing to judge.
    """
    candidates = cluster_adapters(plan)
    cluster = plan.judged if cluster is None else cluster
    if cluster is None:
        raise UnknownName("the study has no gate: no cluster has enough people to be judged; name the cluster")
    if cluster >= len(candidates):
        reason = f"its clusters are 0 to {len(candidates) - 1}" if candidates else f"its methods do not include {GATED}"
        raise UnknownName(f"the study has no cluster {cluster}; {reason}")
    return candidates[cluster], REFERENCE
