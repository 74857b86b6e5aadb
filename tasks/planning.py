"""Plan a study's next work from its state: only what is missing."""

from clusterlora.planning.gate_step import GateStep
from clusterlora.planning.study_state import read_state
from clusterlora.planning.training_groups import Waves
from clusterlora.requests import EvaluationPart
from tasks.study_task import TaskContext, study_task


@study_task("plan clustering · {study_name}")
def groups_before_clustering(context: TaskContext, study_name: str) -> Waves:
    """Return the missing adapters among those that the study's clustering reads."""
    from clusterlora.planning.training_groups import groups_before_clustering

    return groups_before_clustering(read_state(study_name, context.stores))


@study_task("plan gate · {study_name}")
def plan_gate(context: TaskContext, study_name: str) -> GateStep | None:
    """Return the next rung of the gate's ladder with what it needs; None when one has passed, all were tried, or nothing is gated."""
    from clusterlora.planning.gate_step import next_gate_step

    return next_gate_step(read_state(study_name, context.stores))


@study_task("plan fan-out · {study_name}")
def groups_after_gate(context: TaskContext, study_name: str) -> Waves:
    """Return the missing adapters among those that the study's methods need; nothing when the gate refused."""
    from clusterlora.planning.training_groups import remaining_groups

    return remaining_groups(read_state(study_name, context.stores))


@study_task("plan evaluation · {study_name}")
def parts_after_training(context: TaskContext, study_name: str) -> tuple[EvaluationPart, ...]:
    """Return what is evaluated once everything is trained, in order: choices for everybody come before what is answered by them."""
    from clusterlora.methods import METHODS

    methods = read_state(study_name, context.stores).settings.methods
    return ("choices", "test") if any(METHODS[name].retrieves for name in methods) else ("test",)


@study_task("how many shards · {study_name}")
def shards_of(context: TaskContext, study_name: str) -> int:
    """Return into how many runs the study's answers are divided."""
    return read_state(study_name, context.stores).n_shards


@study_task("refused? · {study_name}")
def criteria_not_met(context: TaskContext, study_name: str) -> tuple[str, ...]:
    """Return the criteria that the last configuration missed, when the gate refused; empty otherwise."""
    from clusterlora.planning.ladder import gate_verdict, refused

    state = read_state(study_name, context.stores)
    verdict = gate_verdict(state)
    return tuple(criterion.name for criterion in verdict.criteria if not criterion.passed) if verdict and refused(state) else ()
