"""From settings to work: which adapters the study needs, under which names and keys, and in which packs they are trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from clusterlora.clustering import PREREQUISITES
from clusterlora.errors import BadSettings, UnknownName
from clusterlora.methods import METHODS
from clusterlora.methods.method import StudyView
from clusterlora.ports import Stores
from clusterlora.settings import Rung, Study
from clusterlora.training.identity import adapter_keys
from clusterlora.values import AdapterSpec, Clustering, Dataset, MethodPlan, Stack, TrainedAdapter, digest

OWN = Rung(name="own")
"""The first rung of every ladder: the study's own configuration."""

GATED = "cluster"
"""The method whose first cluster is the gate."""
REFERENCE = "unified"
"""The method it has to beat."""
_DECISION = "gate_decision"
_OF_ONE_PERSON = ("persona", "residual", "prefix")
"""What adapters are called that a method trains for every single person. A cluster of one is not among them."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Adapters trained together in one run. `name` is stable across relaunches, `title` is for people."""

    name: str
    title: str
    adapters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """Everything that follows from the settings, the clustering and one rung of the ladder."""

    rung: Rung
    seeds: tuple[dict[str, MethodPlan], ...]
    specs: dict[str, AdapterSpec]
    keys: dict[str, str]
    answer_settings: str

    @property
    def methods(self) -> dict[str, MethodPlan]:
        """The methods as trained with the study's own seed: what is judged, registered and served."""
        return self.seeds[0]

    def stack_key(self, stack: Stack) -> str:
        """Return the identity of an answering stack: its adapters' keys, their weights, its prompt, and how answers are made and scored."""
        layers = [(self.keys[layer.adapter], layer.weight) for layer in stack.layers]
        return digest([self.answer_settings, layers, stack.shots, stack.described])


def gated(study: Study) -> bool:
    """Return whether the study has a gate: it trains clusters."""
    return GATED in study.methods


def rungs(study: Study) -> tuple[Rung, ...]:
    """Return the ladder, the study's own configuration first."""
    return (OWN, *study.gate.ladder)


def rung_by_name(study: Study, name: str) -> Rung:
    """Return a rung of the study's ladder. Raises UnknownName."""
    for rung in rungs(study):
        if rung.name == name:
            return rung
    raise UnknownName(f"study {study.name} has no rung {name!r}; its ladder is {', '.join(r.name for r in rungs(study))}")


def decided_rung(study: Study, stores: Stores) -> Rung:
    """Return the rung that passed the gate; when none did, the one with the largest gain on val; before the gate, the study's own."""
    verdicts = {verdict.rung: verdict for verdict in stores.studies.verdicts(study.name)}
    tried = [rung for rung in rungs(study) if rung.name in verdicts]
    passed = [rung for rung in tried if verdicts[rung.name].passed]
    if passed or not tried:
        return passed[0] if passed else OWN
    return max(tried, key=lambda rung: verdicts[rung.name].gain)


def refused(study: Study, stores: Stores) -> bool:
    """Return whether the gate has spoken against spending more: every rung was tried and failed, and nobody says to go on."""
    return _none_passed(study, stores) and not _told_to_go_on(study, stores)


def awaits_decision(study: Study, stores: Stores) -> bool:
    """Return whether the gate refused, a person is to decide, and has not yet."""
    return study.gate.on_failure == "ask" and _none_passed(study, stores) and decision(study.name, stores) is None


def decision(study_name: str, stores: Stores) -> bool | None:
    """Return whether a person said to go on after a refused gate; None when nobody has said anything."""
    return stores.studies.facts(study_name).get(_DECISION)


def decide(study_name: str, stores: Stores, *, go_on: bool) -> None:
    """Record a person's decision on a gate that refused."""
    stores.studies.save_fact(study_name, _DECISION, go_on)


def _none_passed(study: Study, stores: Stores) -> bool:
    verdicts = stores.studies.verdicts(study.name)
    tried_all = {rung.name for rung in rungs(study)} <= {verdict.rung for verdict in verdicts}
    return gated(study) and tried_all and not any(verdict.passed for verdict in verdicts)


def _told_to_go_on(study: Study, stores: Stores) -> bool:
    if study.gate.on_failure == "ask":
        return bool(decision(study.name, stores))
    return study.gate.on_failure == "continue"


def work_plan(study: Study, stores: Stores, rung: Rung | None = None) -> WorkPlan:
    """Return the plan under a rung (by default the decided one).

    Before the personas are clustered it is the plan of what the clustering itself reads.

    Raises:
        BadSettings: the personas are not clustered yet, and their clustering needs no adapters.
    """
    clustering = stores.studies.clustering(study.name)
    if clustering is None:
        if study.clustering.algorithm not in PREREQUISITES:
            raise BadSettings(f"study {study.name} has no clustering; run its cluster step first")
        study = replace(study, methods=(PREREQUISITES[study.clustering.algorithm],), seeds=1)
        clustering = Clustering(study.clustering.algorithm, ())
    from clusterlora.models.base import base_revision

    return _work_plan(
        study, stores.studies.dataset(study.name), clustering, rung or decided_rung(study, stores), base_revision(study.model.base)
    )


@lru_cache(maxsize=8)
def _work_plan(study: Study, dataset: Dataset, clustering: Clustering, rung: Rung, revision: str) -> WorkPlan:
    recipe = replace(
        study.recipe,
        learning_rate=rung.learning_rate or study.recipe.learning_rate,
        epochs=rung.epochs or study.recipe.epochs,
    )
    init = rung.init or study.cluster_init
    view = StudyView(dataset.ids, clustering.members, study.recipe, recipe, REFERENCE if init == "unified" else None, {}, study.merging)
    names = (*study.methods, REFERENCE) if gated(study) and REFERENCE not in study.methods else study.methods
    seeds = tuple(_methods_of_seed(view, names, rung, seed) for seed in range(study.seeds))
    specs = {spec.name: spec for methods in seeds for plan in methods.values() for spec in plan.adapters}
    keys = adapter_keys(tuple(specs.values()), dataset, base_revision=revision, model=study.model)
    evaluation = study.evaluation
    answers = digest([revision, study.model, evaluation.max_new_tokens, evaluation.metrics, dataset.digest])
    return WorkPlan(rung, seeds, specs, dict(keys), answers)


def _methods_of_seed(view: StudyView, names: Sequence[str], rung: Rung, seed: int) -> dict[str, MethodPlan]:
    """Return all methods as one training seed makes them. The first is the study's own; adapters of others carry the seed's number."""
    view = replace(
        view,
        recipe=replace(view.recipe, seed=view.recipe.seed + seed),
        cluster_recipe=replace(view.cluster_recipe, seed=view.cluster_recipe.seed + seed),
    )
    alone = {name: _on_rung(METHODS[name](view), rung) for name in names}
    # A method that chooses among the others sees their plans, wherever it stands in the list.
    methods = {
        name: _on_rung(METHODS[name](replace(view, others={other: plan for other, plan in alone.items() if other != name})), rung)
        for name in names
    }
    if seed == 0:
        return methods
    return {name: _renamed(plan, {a.name: f"{a.name}.s{seed}" for a in plan.adapters}) for name, plan in methods.items()}


def _on_rung(plan: MethodPlan, rung: Rung) -> MethodPlan:
    """Return the plan with the rung's name on the adapters it changes, so that a name means one set of weights in a study."""
    if plan.method != GATED or rung == OWN:
        return plan
    return _renamed(plan, {a.name: f"{a.name}+{rung.name}" for a in plan.adapters if a.name != REFERENCE})


def _renamed(plan: MethodPlan, new: Mapping[str, str]) -> MethodPlan:
    """Return the plan with other names for some of its adapters, wherever they are mentioned."""

    def stack(old: Stack) -> Stack:
        return replace(old, layers=tuple(replace(layer, adapter=new.get(layer.adapter, layer.adapter)) for layer in old.layers))

    def spec(old: AdapterSpec) -> AdapterSpec:
        return replace(
            old,
            name=new.get(old.name, old.name),
            init=new.get(old.init, old.init) if old.init else None,
            underlay=new.get(old.underlay, old.underlay) if old.underlay else None,
            parts=tuple(new.get(part, part) for part in old.parts),
        )

    return replace(
        plan,
        adapters=tuple(spec(a) for a in plan.adapters),
        arms_by_persona=tuple((p, tuple(stack(s) for s in stacks)) for p, stacks in plan.arms_by_persona),
    )


def trained_adapters(study: Study, stores: Stores, plan: WorkPlan) -> dict[str, TrainedAdapter]:
    """Return what the plan wants and the study holds, by name in the plan. Two names may stand for one set of weights."""
    held = {adapter.key: adapter for adapter in stores.studies.adapters(study.name)}
    return {name: held[key] for name, key in plan.keys.items() if key in held}


def plan_with(study: Study, stores: Stores, names: Sequence[str]) -> WorkPlan:
    """Return the plan, the decided one first, that knows all these adapters under some rung."""
    plans = [work_plan(study, stores), *(work_plan(study, stores, rung) for rung in rungs(study))]
    for plan in plans:
        if set(names) <= plan.specs.keys():
            return plan
    raise UnknownName(f"study {study.name} plans no adapters {', '.join(names)}; it plans {', '.join(plans[0].specs)}")


def judged_adapters(plan: WorkPlan, cluster: int = 0) -> tuple[str, str]:
    """Return the names of (the candidate: the cluster's adapter, the reference: unified). The gate judges cluster 0.

    Raises:
        UnknownName: the plan has no such cluster.
    """
    candidates = [spec.name for spec in plan.methods[GATED].adapters if spec.name != REFERENCE] if GATED in plan.methods else []
    if cluster >= len(candidates):
        known = f"its clusters are 0 to {len(candidates) - 1}" if candidates else f"its methods do not include {GATED}"
        raise UnknownName(f"the study has no cluster {cluster}; {known}")
    return candidates[cluster], REFERENCE


def packs_before_clustering(study: Study, stores: Stores) -> tuple[Pack, ...]:
    """Return what the clustering reads and is not trained yet; nothing when it reads no adapters, or is done."""
    if study.clustering.algorithm not in PREREQUISITES or stores.studies.clustering(study.name) is not None:
        return ()
    plan = work_plan(study, stores)
    return _packs(study, stores, plan, tuple(plan.specs))


def gate_packs(study: Study, stores: Stores, rung: Rung) -> tuple[Pack, ...]:
    """Return what the gate still needs trained under a rung and can be trained at once; call again until nothing is left."""
    plan = work_plan(study, stores, rung)
    return _packs(study, stores, plan, judged_adapters(plan))


def remaining_packs(study: Study, stores: Stores) -> tuple[Pack, ...]:
    """Return what the study still needs trained after the gate and can be trained at once; call again until nothing is left."""
    if refused(study, stores):
        return ()
    plan = work_plan(study, stores)
    # What depends on the clusters waits until nobody moves any more.
    wanted = tuple(spec.name for spec in plan.methods[GATED].adapters) if refinement_pending(study, stores) else tuple(plan.specs)
    return _packs(study, stores, plan, wanted)


def refinement_pending(study: Study, stores: Stores) -> bool:
    """Return whether the clusters are to be refined once they are trained."""
    done = stores.studies.facts(study.name).get("refinement_rounds", 0)
    return gated(study) and done < study.clustering.refinement_rounds and not refused(study, stores)


def pack_named(study: Study, stores: Stores, names: Sequence[str], rung: Rung | None = None) -> tuple[Pack, ...]:
    """Return packs for these adapters and whatever they start from, as far as they are missing and can be trained at once."""
    return _packs(study, stores, work_plan(study, stores, rung), names)


def _packs(study: Study, stores: Stores, plan: WorkPlan, names: Sequence[str]) -> tuple[Pack, ...]:
    wanted: dict[str, None] = {}
    for name in names:
        wanted |= dict.fromkeys((*plan.specs[name].needs, name))
    held = trained_adapters(study, stores, plan)
    missing = [name for name in wanted if name not in held]
    ready = [plan.specs[n] for n in missing if not set(plan.specs[n].needs) & set(missing)]
    single = [name for name in plan.specs if name.partition("-")[0] in _OF_ONE_PERSON]
    shared = [spec for spec in ready if spec.name not in single and not spec.parts]
    packs = [_shared_pack(together) for together in _by_name_without_seed(shared)]
    if merged := tuple(spec.name for spec in ready if spec.parts):
        packs.append(Pack("merge", "merge clusters", merged))
    # One person's adapter is too small for a run of its own: deal them out, by their place in the plan so that a relaunch deals alike.
    shards = study.runtime.shards
    for shard in range(shards):
        dealt = set(single[shard::shards])
        for kind, pack, title in (("lora", "personas", "per persona"), ("prefix", "prefixes", "prefix per persona")):
            mine = tuple(spec.name for spec in ready if spec.kind == kind and spec.name in dealt)
            if mine:
                packs.append(Pack(f"{pack}-{shard + 1}-of-{shards}", f"{title} {shard + 1}/{shards}", mine))
    return tuple(packs)


def _by_name_without_seed(specs: Sequence[AdapterSpec]) -> list[list[AdapterSpec]]:
    """Return the adapters in groups: one each for those of the study's own seed, all further seeds of a name together."""
    groups: dict[tuple[str, bool], list[AdapterSpec]] = {}
    for spec in specs:
        name, _, seed = spec.name.partition(".s")
        groups.setdefault((name, bool(seed)), []).append(spec)
    return list(groups.values())


def _shared_pack(specs: Sequence[AdapterSpec]) -> Pack:
    name, _, seed = specs[0].name.partition(".s")
    title = name.replace("-", " ", 1)
    return Pack(f"{name}.seeds", f"{title}, other seeds", tuple(s.name for s in specs)) if seed else Pack(name, title, (name,))
