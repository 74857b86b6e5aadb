"""Group adapters into training runs: which ones are trained together, under which name, and in which order."""

from collections.abc import Collection, Iterator, Sequence

from clusterlora.clustering import PREREQUISITES
from clusterlora.engine.load_balancing import partition_by_load
from clusterlora.planning.ladder import GATED, refused
from clusterlora.planning.study_state import StudyState
from clusterlora.planning.trials import TrialStep, finished
from clusterlora.planning.work_plan import WorkPlan, gate_adapters, trained_adapters, variant_name, work_plan
from clusterlora.requests import TrainingGroup
from clusterlora.values import AdapterSpec

Waves = tuple[tuple[TrainingGroup, ...], ...]
"""Groups of one wave can be trained at the same time; they depend only on adapters of earlier waves."""


def groups_before_clustering(state: StudyState) -> Waves:
    """Return the groups of missing adapters that the clustering reads; none when it reads no adapters, or is done."""
    if state.settings.clustering.algorithm not in PREREQUISITES or state.clustering is not None:
        return ()
    plan = work_plan(state)
    return groups_of(state, plan, tuple(plan.specs))


def gate_groups(state: StudyState, plan: WorkPlan) -> Waves:
    """Return the groups of missing adapters that the gate judges under the plan's rung."""
    return groups_of(state, plan, gate_adapters(plan))


def remaining_groups(state: StudyState) -> Waves:
    """Return the groups of all missing adapters that the study needs after the gate; none when the gate refused."""
    if refused(state):
        return ()
    plan = work_plan(state)
    # Until refinement is done, only the clusters' own adapters are trained: the others depend on the final clusters.
    names = tuple(spec.name for spec in plan.methods[GATED].adapters) if refinement_pending(state) else tuple(plan.specs)
    return tuple(_fan_out(state, plan, wave) for wave in _missing(state, plan, names))


def trial_groups(state: StudyState, step: TrialStep) -> Waves:
    """Return the groups of a tuning step's missing adapters: all recipes share the runs, and within one their passes."""
    plan = step.plan
    waves = _missing(state, plan, tuple(plan.specs), ready=finished(state, plan))
    return tuple(_fan_out(state, plan, wave) for wave in waves)


def refinement_pending(state: StudyState) -> bool:
    """Return whether another round of cluster refinement is due once the clusters' adapters are trained."""
    rounds = state.settings.clustering.refinement_rounds
    return GATED in state.settings.methods and state.refinement.rounds_done < rounds and not refused(state)


def groups_of(state: StudyState, plan: WorkPlan, names: Sequence[str]) -> Waves:
    """Return the groups of those of these adapters, and of the adapters they depend on, that are missing.

    Each large adapter is a group of its own; adapters of single persons or small groups are in the same groups as when everything is
    trained.
    """
    return tuple(_groups(state, plan, wave) for wave in _missing(state, plan, names))


def _groups(state: StudyState, plan: WorkPlan, wave: Sequence[AdapterSpec]) -> tuple[TrainingGroup, ...]:
    groups = _groups_of_large(plan, [spec for spec in wave if not (spec.is_one_of_many or spec.merge_of)])
    # Longest first: free workers take the next group, so a long one should not start last.
    groups.sort(key=lambda group: -sum(_work(plan.specs[name]) for name in group.adapters))
    return (*groups, *_fan_out(state, plan, [spec for spec in wave if spec.is_one_of_many or spec.merge_of]))


def _fan_out(state: StudyState, plan: WorkPlan, wave: Sequence[AdapterSpec]) -> tuple[TrainingGroup, ...]:
    """Return groups that partition the work by load into as many runs as the study has shards.

    Small adapters are not worth a run of their own, and share forward passes with large ones. Partition and names depend on the plan only,
    so they are the same after a relaunch; adapters the gate has trained count as zero load. The runs of a step of the tuning are called
    after it, and those of later waves after theirs, as attempts are counted by name.
    """
    names = {spec.name for spec in wave}
    before = frozenset(gate_adapters(plan)) if plan.judged is not None else frozenset[str]()
    groups = []
    trained = [spec for spec in plan.specs.values() if not spec.merge_of]
    wave_of = _waves(plan, before)
    for are_prefixes, group, title in ((False, "fan-out", "fan-out"), (True, "prefixes", "prefixes")):
        specs = [spec for spec in trained if (spec.recipe.kind == "prefix") == are_prefixes]
        name, words = (f"tuning-{plan.step}-{group}", f"tuning {plan.step}, {title}") if plan.step else (group, title)
        work = {spec: 0 if spec.name in before else _work(spec) for spec in specs}
        bins = partition_by_load(work, state.n_shards)
        for number, shard in enumerate(bins, start=1):
            in_shard = [spec.name for spec in shard if spec.name in names]
            for k in sorted({wave_of[one] for one in in_shard}):
                later, told = (f"-wave-{k}", f", wave {k}") if k > 1 else ("", "")
                adapters = tuple(one for one in in_shard if wave_of[one] == k)
                groups.append(_group(plan, f"{name}-{number}-of-{len(bins)}{later}", f"{words} {number}/{len(bins)}{told}", adapters))
    if merged := tuple(spec.name for spec in wave if spec.merge_of):
        groups.append(_group(plan, "merge", "merge clusters", merged))
    return tuple(groups)


def _waves(plan: WorkPlan, before: Collection[str]) -> dict[str, int]:
    """Return by adapter the wave of the fan-out in which it is trained, from 1, where the gate has trained those of `before`."""
    wave_of: dict[str, int] = {}
    for name in plan.with_needs(plan.specs):
        needed = [one for one in plan.specs[name].needs if one not in before and not plan.specs[one].kept]
        wave_of[name] = 1 + max((wave_of[one] for one in needed), default=0)
    return wave_of


def _missing(
    state: StudyState, plan: WorkPlan, names: Sequence[str], *, ready: Collection[str] | None = None
) -> Iterator[list[AdapterSpec]]:
    """Yield those of these adapters and their dependencies that are not `ready`, in waves that depend only on ready ones and earlier waves.

    Args:
        ready: by default those that are trained.
    """
    ready = set(trained_adapters(state, plan) if ready is None else ready)
    missing = [name for name in plan.with_needs(names) if name not in ready]
    while missing:
        wave = [name for name in missing if ready.issuperset(plan.specs[name].needs)]
        assert wave, f"adapters that need each other: {', '.join(missing)}"
        # Two names may stand for one set of weights; the first is trained.
        first = {plan.keys[name]: name for name in reversed(wave)}
        yield [plan.specs[name] for name in wave if first[plan.keys[name]] == name]
        ready |= {name for name in missing if plan.keys[name] in first}
        missing = [name for name in missing if name not in ready]


def _work(spec: AdapterSpec) -> int:
    return 0 if spec.kept else len(spec.persona_ids) * spec.recipe.epochs


def _groups_of_large(plan: WorkPlan, specs: Sequence[AdapterSpec]) -> list[TrainingGroup]:
    """Return a group for each adapter of the study's own seed, and one for all further seeds of an adapter together."""
    variants: dict[tuple[str, bool], list[str]] = {}
    for spec in specs:
        variants.setdefault((variant_name(spec.label, spec.rung, seed=0), spec.seed > 0), []).append(spec.name)
    groups: list[TrainingGroup] = []
    for (name, is_further), names in variants.items():
        title = name.replace("-", " ", 1)
        if is_further:
            groups.append(_group(plan, f"{name}.seeds", f"{title}, other seeds", tuple(names)))
        else:
            groups.append(_group(plan, name, title, tuple(names)))
    return groups


def _group(plan: WorkPlan, name: str, title: str, adapters: tuple[str, ...]) -> TrainingGroup:
    trained_by = plan.trained_by()
    methods = tuple(sorted({trained_by[adapter] for adapter in adapters}))
    return TrainingGroup(name, title, adapters, rung=plan.rung.name, step=plan.step, methods=methods)
