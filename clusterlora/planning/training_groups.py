"""How adapters are grouped into runs: which are trained together, under which name, and in which order."""

from collections.abc import Sequence

from clusterlora.clustering import PREREQUISITES
from clusterlora.metadata import Refinement
from clusterlora.planning.ladder import GATED, gated, refused
from clusterlora.planning.work_plan import WorkPlan, judged_adapters, trained_adapters, work_plan
from clusterlora.ports import Stores
from clusterlora.requests import TrainingGroup
from clusterlora.settings import Rung, Study
from clusterlora.training.load_balancing import partition_by_load
from clusterlora.values import AdapterSpec

_OF_ONE_PERSON = ("persona", "residual", "prefix")
"""What adapters are called that a method trains for every single person. A cluster of one is not among them."""


def groups_before_clustering(study: Study, stores: Stores) -> tuple[TrainingGroup, ...]:
    """Return what the clustering reads and is not trained yet; nothing when it reads no adapters, or is done."""
    if study.clustering.algorithm not in PREREQUISITES or stores.studies.clustering(study.name) is not None:
        return ()
    plan = work_plan(study, stores)
    return _groups(study, stores, plan, tuple(plan.specs))


def gate_groups(study: Study, stores: Stores, rung: Rung) -> tuple[TrainingGroup, ...]:
    """Return what the gate still needs trained under a rung and can be trained at once; call again until nothing is left."""
    plan = work_plan(study, stores, rung)
    return _groups(study, stores, plan, judged_adapters(plan))


def remaining_groups(study: Study, stores: Stores) -> tuple[TrainingGroup, ...]:
    """Return what the study still needs trained after the gate and can be trained at once; call again until nothing is left."""
    if refused(study, stores):
        return ()
    plan = work_plan(study, stores)
    # What depends on the clusters waits until nobody moves any more.
    wanted = tuple(spec.name for spec in plan.methods[GATED].adapters) if refinement_pending(study, stores) else tuple(plan.specs)
    return _fan_out(study, plan, _ready(study, stores, plan, wanted))


def refinement_pending(study: Study, stores: Stores) -> bool:
    """Return whether the clusters are to be refined once they are trained."""
    done = (stores.studies.metadata(study.name, Refinement) or Refinement()).rounds_done
    return gated(study) and done < study.clustering.refinement_rounds and not refused(study, stores)


def groups_of(study: Study, stores: Stores, names: Sequence[str], rung: Rung | None = None) -> tuple[TrainingGroup, ...]:
    """Return groups for these adapters and whatever they start from, as far as they are missing and can be trained at once."""
    return _groups(study, stores, work_plan(study, stores, rung), names)


def _groups(study: Study, stores: Stores, plan: WorkPlan, names: Sequence[str]) -> tuple[TrainingGroup, ...]:
    """Return a group for each shared adapter, and for those of single persons the groups they are in when everything is trained."""
    ready = _ready(study, stores, plan, names)
    shared = [spec for spec in ready if not of_one_person(spec) and not spec.merge_of]
    groups = [_shared_group(together) for together in _by_name_without_seed(shared)]
    # Longest first: a worker that is free takes the next one, and none is left with a long one at the end.
    groups.sort(key=lambda group: -sum(_work(plan.specs[name]) for name in group.adapters))
    return (*groups, *_fan_out(study, plan, [spec for spec in ready if of_one_person(spec) or spec.merge_of]))


def _fan_out(study: Study, plan: WorkPlan, ready: Sequence[AdapterSpec]) -> tuple[TrainingGroup, ...]:
    """Return groups that share the work among as many runs as the study has shards.

    Small adapters are not worth a run of their own, and large ones share their passes with them. Who is in which group follows from the
    plan alone, so that a relaunch deals alike; what the gate has trained by then is no work of anybody's.
    """
    names = {spec.name for spec in ready}
    before = frozenset(judged_adapters(plan)) if GATED in plan.methods else frozenset[str]()
    groups = []
    for kind, group, title in (("lora", "fan-out", "fan-out"), ("prefix", "prefixes", "prefixes")):
        work = {spec: 0 if spec.name in before else _work(spec) for spec in plan.specs.values() if spec.kind == kind and not spec.merge_of}
        dealt = partition_by_load(work, study.runtime.shards)
        for number, shard in enumerate(dealt, start=1):
            if mine := tuple(spec.name for spec in shard if spec.name in names):
                groups.append(TrainingGroup(f"{group}-{number}-of-{len(dealt)}", f"{title} {number}/{len(dealt)}", mine))
    if merged := tuple(spec.name for spec in ready if spec.merge_of):
        groups.append(TrainingGroup("merge", "merge clusters", merged))
    return tuple(groups)


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


def _shared_group(specs: Sequence[AdapterSpec]) -> TrainingGroup:
    name, _, seed = specs[0].name.partition(".s")
    title = name.replace("-", " ", 1)
    return (
        TrainingGroup(f"{name}.seeds", f"{title}, other seeds", tuple(s.name for s in specs))
        if seed
        else TrainingGroup(name, title, (name,))
    )
