"""What is to be trained next, read from the study database: only what is missing and can start at once."""

from clusterlora.requests import TrainingGroup
from clusterlora.settings import Rung
from tasks.study_task import TaskContext, study_task


@study_task("ladder · {study_name}")
def ladder(context: TaskContext, study_name: str) -> tuple[Rung, ...]:
    """Return the configurations that the gate tries in order, the study's own first; none when nothing is gated."""
    from clusterlora.planning.ladder import gated, rungs

    stores = context.stores
    study = stores.studies.study(study_name)
    return rungs(study, stores) if gated(study) else ()


@study_task("plan clustering · {study_name}")
def groups_before_clustering(context: TaskContext, study_name: str) -> tuple[TrainingGroup, ...]:
    """Return what can be trained at once of what the study's clustering reads."""
    from clusterlora.planning.training_groups import groups_before_clustering as missing

    stores = context.stores
    return missing(stores.studies.study(study_name), stores)


@study_task("plan gate · {study_name} · {rung.name}")
def groups_for_gate(context: TaskContext, study_name: str, rung: Rung) -> tuple[TrainingGroup, ...]:
    """Return what can be trained at once of what a rung still needs before it can be judged."""
    from clusterlora.planning.training_groups import gate_groups

    stores = context.stores
    return gate_groups(stores.studies.study(study_name), stores, rung)


@study_task("plan baseline · {study_name}")
def baseline_beside_gate(context: TaskContext, study_name: str) -> bool:
    """Return whether the bare base model answers while the gate's adapters are trained.

    That is when it is compared and the study is for several workers. Where there is one after all, it answers before the gate is judged.
    """
    study = context.stores.studies.study(study_name)
    return "baseline" in study.methods and study.runtime.shards > 1


@study_task("plan fan-out · {study_name}")
def groups_after_gate(context: TaskContext, study_name: str) -> tuple[TrainingGroup, ...]:
    """Return what can be trained at once of what the study's methods still need; nothing when the gate refused."""
    from clusterlora.planning.training_groups import remaining_groups

    stores = context.stores
    return remaining_groups(stores.studies.study(study_name), stores)


@study_task("refused? · {study_name}")
def was_refused(context: TaskContext, study_name: str) -> bool:
    """Return whether the gate has spoken against spending more and nobody said to go on."""
    from clusterlora.planning.ladder import refused

    stores = context.stores
    return refused(stores.studies.study(study_name), stores)
