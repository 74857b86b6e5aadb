"""What is to be trained next, read from the study database: only what is missing and can start at once."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from clusterlora.planning.training_groups import TrainingGroup
from clusterlora.settings import Rung
from clusterlora.wiring import from_environment
from tasks.retrying import RETRIED


@task(task_run_name="ladder · {study_name}", cache_policy=NO_CACHE, **RETRIED)
def ladder(study_name: str) -> tuple[Rung, ...]:
    """Return the configurations that the gate tries in order, the study's own first; none when nothing is gated."""
    from clusterlora.planning.ladder import gated, rungs

    stores = from_environment()
    study = stores.studies.study(study_name)
    return rungs(study, stores) if gated(study) else ()


@task(task_run_name="plan clustering · {study_name}", cache_policy=NO_CACHE, **RETRIED)
def groups_before_clustering(study_name: str) -> tuple[TrainingGroup, ...]:
    """Return what can be trained at once of what the study's clustering reads."""
    from clusterlora.planning.training_groups import groups_before_clustering as missing

    stores = from_environment()
    return missing(stores.studies.study(study_name), stores)


@task(task_run_name="plan gate · {study_name} · {rung.name}", cache_policy=NO_CACHE, **RETRIED)
def groups_for_gate(study_name: str, rung: Rung) -> tuple[TrainingGroup, ...]:
    """Return what can be trained at once of what a rung still needs before it can be judged."""
    from clusterlora.planning.training_groups import gate_groups

    stores = from_environment()
    return gate_groups(stores.studies.study(study_name), stores, rung)


@task(task_run_name="plan baseline · {study_name}", cache_policy=NO_CACHE, **RETRIED)
def baseline_beside_gate(study_name: str) -> bool:
    """Return whether the bare base model answers while the gate's adapters are trained.

    That is when it is compared and the study is for several workers. Where there is one after all, it answers before the gate is judged.
    """
    study = from_environment().studies.study(study_name)
    return "baseline" in study.methods and study.runtime.shards > 1


@task(task_run_name="plan fan-out · {study_name}", cache_policy=NO_CACHE, **RETRIED)
def groups_after_gate(study_name: str) -> tuple[TrainingGroup, ...]:
    """Return what can be trained at once of what the study's methods still need; nothing when the gate refused."""
    from clusterlora.planning.training_groups import remaining_groups

    stores = from_environment()
    return remaining_groups(stores.studies.study(study_name), stores)


@task(task_run_name="refused? · {study_name}", cache_policy=NO_CACHE, **RETRIED)
def was_refused(study_name: str) -> bool:
    """Return whether the gate has spoken against spending more and nobody said to go on."""
    from clusterlora.planning.ladder import refused

    stores = from_environment()
    return refused(stores.studies.study(study_name), stores)
