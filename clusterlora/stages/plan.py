"""From settings to work: which adapters the study needs, under which names and keys, and in which packs they are trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from clusterlora.clustering import PREREQUISITES
from clusterlora.errors import BadSettings, UnknownName
from clusterlora.methods import METHODS
from clusterlora.methods.held_out import HELD_OUT, HELD_OUT_REFERENCE, held_out
from clusterlora.methods.method import StudyView
from clusterlora.ports import Stores
from clusterlora.settings import Rung, Study
from clusterlora.stages.decision import asked_rungs, decisions
from clusterlora.training.cache_key import cache_keys
from clusterlora.training.load_balancing import partition_by_load
from clusterlora.values import AdapterSpec, Clustering, Dataset, MethodPlan, Stack, TrainedAdapter, digest

OWN = Rung(name="own")
"""The first rung of every ladder: the study's own configuration."""

GATED = "cluster"
"""The method whose first cluster is the gate."""
REFERENCE = "unified"
"""The method it has to beat."""
IMPORTED = "imported_cluster"
"""The method made of adapters that were trained elsewhere."""
IMPORTED_FACT = "imported_clusters"
"""The study's fact that says which: the hash of the weights by cluster."""
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
    """Everything that follows from the settings, the clustering and one rung of the ladder.

    `held_out` measures how new people are given a cluster; it is no method of the comparison.
    """

    rung: Rung
    seeds: tuple[dict[str, MethodPlan], ...]
    specs: dict[str, AdapterSpec]
    keys: dict[str, str]
    answer_settings: str
    held_out: MethodPlan | None = None

    @property
    def methods(self) -> dict[str, MethodPlan]:
        """The methods as trained with the study's own seed: what is judged, registered and served."""
        return self.seeds[0]

    def trained_by(self) -> dict[str, str]:
        """Return the first method that trains an adapter, for each; unified is a method of its own, whoever starts from it."""
        plans = [*(plan for methods in self.seeds for plan in methods.values()), *((self.held_out,) if self.held_out else ())]
        first = {one.name: plan.method for plan in reversed(plans) for one in plan.adapters}
        return {name: REFERENCE if name.partition(".s")[0] == REFERENCE else method for name, method in first.items()}

    def stack_key(self, stack: Stack) -> str:
        """Return the identity of an answering stack: its adapters' keys, their weights, its prompt, and how answers are made and scored."""
        layers = [(self.keys[layer.adapter], layer.weight) for layer in stack.layers]
        return digest([self.answer_settings, layers, stack.shots, stack.described])


def gated(study: Study) -> bool:
    """Return whether the study has a gate: it trains clusters."""
    return GATED in study.methods


def rungs(study: Study, stores: Stores) -> tuple[Rung, ...]:
    """Return the ladder, the study's own configuration first and what people asked for last."""
    return (OWN, *study.gate.ladder, *asked_rungs(study.name, stores))


def rung_by_name(study: Study, name: str, stores: Stores) -> Rung:
    """Return a rung of the study's ladder. Raises UnknownName."""
    for rung in rungs(study, stores):
        if rung.name == name:
            return rung
    raise UnknownName(f"study {study.name} has no rung {name!r}; its ladder is {', '.join(r.name for r in rungs(study, stores))}")


def decided_rung(study: Study, stores: Stores) -> Rung:
    """Return the rung that passed the gate; when none did, the one with the largest gain on val; before the gate, the study's own."""
    verdicts = {verdict.rung: verdict for verdict in stores.studies.verdicts(study.name)}
    tried = [rung for rung in rungs(study, stores) if rung.name in verdicts]
    passed = [rung for rung in tried if verdicts[rung.name].passed]
    if passed or not tried:
        return passed[0] if passed else OWN
    return max(tried, key=lambda rung: verdicts[rung.name].gain)


def refused(study: Study, stores: Stores) -> bool:
    """Return whether the gate has spoken against spending more: every rung was tried and failed, and nobody says to go on."""
    return _none_passed(study, stores) and not _told_to_go_on(study, stores)


def awaits_decision(study: Study, stores: Stores) -> bool:
    """Return whether the gate refused, a person is to decide, and has not yet."""
    return study.gate.on_failure == "ask" and _none_passed(study, stores) and not _settled(study.name, stores)


def _settled(study_name: str, stores: Stores) -> bool:
    """Return whether the last word on the gate was to stop or to go on; after a retry that failed, another is awaited."""
    said = decisions(study_name, stores)
    return bool(said) and said[-1].choice != "retry"


def _none_passed(study: Study, stores: Stores) -> bool:
    verdicts = stores.studies.verdicts(study.name)
    tried_all = {rung.name for rung in rungs(study, stores)} <= {verdict.rung for verdict in verdicts}
    return gated(study) and tried_all and not any(verdict.passed for verdict in verdicts)


def _told_to_go_on(study: Study, stores: Stores) -> bool:
    if study.gate.on_failure == "ask":
        return _settled(study.name, stores) and decisions(study.name, stores)[-1].choice == "continue"
    return study.gate.on_failure == "continue"


def work_plan(study: Study, stores: Stores, rung: Rung | None = None) -> WorkPlan:
    """Return the plan under a rung (by default the decided one).

    Before the personas are clustered it is the plan of what the clustering itself reads.

    Raises:
        BadSettings: the personas are not clustered yet, and their clustering needs no adapters.
    """
    # What was decided when the study was prepared, its dtype, is part of every key.
    study = replace(study, model=stores.studies.study(study.name).model)
    clustering = stores.studies.clustering(study.name)
    if clustering is None:
        if study.clustering.algorithm not in PREREQUISITES:
            raise BadSettings(f"study {study.name} has no clustering; run its cluster step first")
        study = replace(study, methods=(PREREQUISITES[study.clustering.algorithm],), seeds=1)
        clustering = Clustering(study.clustering.algorithm, ())
    from clusterlora.models.base import base_revision

    dataset, decided = stores.studies.dataset(study.name), rung or decided_rung(study, stores)
    return _work_plan(study, dataset, clustering, decided, base_revision(study.model.base), _imported(study, stores))


def _imported(study: Study, stores: Stores) -> tuple[tuple[int, str], ...]:
    """Return (cluster, hash of the weights) of the adapters brought into the study. Raises BadSettings when there are none to compare."""
    if IMPORTED not in study.methods:
        return ()
    found = stores.studies.facts(study.name).get(IMPORTED_FACT, {})
    if not found:
        raise BadSettings(
            f"study {study.name} compares {IMPORTED}, but nothing was imported; run: clusterlora study import --name {study.name} ..."
        )
    return tuple(sorted((int(cluster), str(weights)) for cluster, weights in found.items()))


@lru_cache(maxsize=8)
def _work_plan(
    study: Study, dataset: Dataset, clustering: Clustering, rung: Rung, revision: str, imported: tuple[tuple[int, str], ...]
) -> WorkPlan:
    recipe = replace(
        study.recipe,
        learning_rate=rung.learning_rate or study.recipe.learning_rate,
        epochs=rung.epochs or study.recipe.epochs,
    )
    init = rung.init or study.cluster_init
    view = StudyView(
        dataset.ids, clustering.members, study.recipe, recipe, REFERENCE if init == "unified" else None, {}, study.merging, imported
    )
    names = (*study.methods, REFERENCE) if gated(study) and REFERENCE not in study.methods else study.methods
    seeds = tuple(_methods_of_seed(view, names, rung, seed) for seed in range(study.seeds))
    share = study.assignment.held_out_share
    measured = held_out(view, share, study.assignment.seed) if share else None
    apart = _on_rung(measured, rung) if measured else None
    plans = [*(plan for methods in seeds for plan in methods.values()), *((apart,) if apart else ())]
    specs = {spec.name: spec for plan in plans for spec in plan.adapters}
    keys = cache_keys(tuple(specs.values()), dataset, base_revision=revision, model=study.model)
    evaluation = study.evaluation
    answers = digest([revision, study.model, evaluation.max_new_tokens, evaluation.metrics, dataset.digest])
    return WorkPlan(rung, seeds, specs, dict(keys), answers, apart)


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
    if plan.method not in (GATED, HELD_OUT) or rung == OWN:
        return plan
    as_it_is = (REFERENCE, HELD_OUT_REFERENCE)
    return _renamed(plan, {a.name: f"{a.name}+{rung.name}" for a in plan.adapters if a.name not in as_it_is})


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
    plans = [work_plan(study, stores), *(work_plan(study, stores, rung) for rung in rungs(study, stores))]
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
    return _fan_out(study, plan, _ready(study, stores, plan, wanted))


def refinement_pending(study: Study, stores: Stores) -> bool:
    """Return whether the clusters are to be refined once they are trained."""
    done = stores.studies.facts(study.name).get("refinement_rounds", 0)
    return gated(study) and done < study.clustering.refinement_rounds and not refused(study, stores)


def pack_named(study: Study, stores: Stores, names: Sequence[str], rung: Rung | None = None) -> tuple[Pack, ...]:
    """Return packs for these adapters and whatever they start from, as far as they are missing and can be trained at once."""
    return _packs(study, stores, work_plan(study, stores, rung), names)


def _packs(study: Study, stores: Stores, plan: WorkPlan, names: Sequence[str]) -> tuple[Pack, ...]:
    """Return a pack for each shared adapter, and for those of single persons the packs they are in when everything is trained."""
    ready = _ready(study, stores, plan, names)
    shared = [spec for spec in ready if not of_one_person(spec) and not spec.parts]
    packs = [_shared_pack(together) for together in _by_name_without_seed(shared)]
    # Longest first: a worker that is free takes the next one, and none is left with a long one at the end.
    packs.sort(key=lambda pack: -sum(_work(plan.specs[name]) for name in pack.adapters))
    return (*packs, *_fan_out(study, plan, [spec for spec in ready if of_one_person(spec) or spec.parts]))


def _fan_out(study: Study, plan: WorkPlan, ready: Sequence[AdapterSpec]) -> tuple[Pack, ...]:
    """Return packs that share the work among as many runs as the study has shards.

    Small adapters are not worth a run of their own, and large ones share their passes with them. Who is in which pack follows from the
    plan alone, so that a relaunch deals alike; what the gate has trained by then is no work of anybody's.
    """
    names = {spec.name for spec in ready}
    before = frozenset(judged_adapters(plan)) if GATED in plan.methods else frozenset[str]()
    packs = []
    for kind, pack, title in (("lora", "fan-out", "fan-out"), ("prefix", "prefixes", "prefixes")):
        work = {spec: 0 if spec.name in before else _work(spec) for spec in plan.specs.values() if spec.kind == kind and not spec.parts}
        dealt = partition_by_load(work, study.runtime.shards)
        for number, shard in enumerate(dealt, start=1):
            if mine := tuple(spec.name for spec in shard if spec.name in names):
                packs.append(Pack(f"{pack}-{number}-of-{len(dealt)}", f"{title} {number}/{len(dealt)}", mine))
    if merged := tuple(spec.name for spec in ready if spec.parts):
        packs.append(Pack("merge", "merge clusters", merged))
    return tuple(packs)


def _ready(study: Study, stores: Stores, plan: WorkPlan, names: Sequence[str]) -> list[AdapterSpec]:
    """Return what is missing of these adapters and of what they start from, as far as all that it needs is there."""
    wanted: dict[str, None] = {}
    for name in names:
        wanted |= dict.fromkeys((*plan.specs[name].needs, name))
    held = trained_adapters(study, stores, plan)
    missing = [name for name in wanted if name not in held]
    return [plan.specs[n] for n in missing if not set(plan.specs[n].needs) & set(missing)]


def _work(spec: AdapterSpec) -> int:
    return len(spec.persona_ids) * spec.recipe.epochs


def of_one_person(spec: AdapterSpec) -> bool:
    """Return whether a method trains such an adapter for every single person; a cluster's is none of those, however few are in it."""
    return spec.name.partition("-")[0] in _OF_ONE_PERSON


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
