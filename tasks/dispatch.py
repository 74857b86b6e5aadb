"""Tasks that start a deployed run on the gpu pool and wait for it. One try of the task is one attempt of the work."""

from collections.abc import Collection

from clusterlora.planning.attempts import next_request
from clusterlora.planning.ladder import GATED, REFERENCE
from clusterlora.planning.study_state import read_state
from clusterlora.ports.stores import Stores
from clusterlora.requests import EvaluationRequest, TrainingGroup, TrainRequest
from clusterlora.settings import Study
from clusterlora.values import Attempt
from clusterlora.wiring import forget_what_can_be_read_again
from tasks.child_runs import (
    MOST_CRASHES,
    MOST_HALVINGS,
    POLL_SECONDS,
    another_attempt,
    close_cancelled_attempt,
    count_crash,
    run_attempt,
    seconds_on_worker,
    wait_for_run_of,
)
from tasks.study_task import TaskContext, study_task


@study_task("train · {group.title} · {study_name}", retry=another_attempt(MOST_HALVINGS))
def dispatch_training(context: TaskContext, study_name: str, group: TrainingGroup, *, after: str | None = None) -> None:
    """Train a group in a run of its own; after OutOfMemory the retry halves the micro-batch.

    Args:
        after: the group or evaluation whose run is queued first, so that workers take the two in this order.

    Raises:
        OutOfMemory: it does not fit, even one dialogue at a time or after the last retry.
        CrashedChildError: the run died in every attempt.
        FailedChildError: the run failed for another reason, or was cancelled.
    """
    from clusterlora.planning.trials import finished, plan_of

    stores = context.stores
    study = stores.studies.study(study_name)
    if after is not None:
        wait_for_run_of(after, study_name, stores)
    close_cancelled_attempt(study_name, group.name, stores)
    request = next_request(study, group, stores)
    attempt = Attempt(group=group.name, number=request.attempt, micro_batch=request.micro_batch, state="running")
    _run(request, study, attempt, stores, methods=group.methods, timed_as=("train", group.name))

    state = read_state(study_name, stores)
    missing = set(group.adapters) - finished(state, plan_of(state, group.rung, group.step))
    # The other groups of a wave may run on for hours.
    del state
    forget_what_can_be_read_again()
    if missing:
        count_crash(study_name, attempt, "lost", f"the run completed but left no {', '.join(sorted(missing))}", stores)


@study_task("evaluate · {request.part} {request.shard}/{request.shards} · {request.study_name}", retry=another_attempt(MOST_CRASHES))
def dispatch_evaluation(context: TaskContext, request: EvaluationRequest, *, after: str | None = None) -> None:
    """Answer and score one shard of a study's items in a run of its own.

    Args:
        after: as of `dispatch_training`.

    Raises:
        CrashedChildError: the run died in every attempt.
        FailedChildError: the run failed for another reason, or was cancelled.
    """
    stores, name = context.stores, request.run_name
    study = stores.studies.study(request.study_name)
    if after is not None:
        wait_for_run_of(after, study.name, stores)
    close_cancelled_attempt(study.name, name, stores)
    earlier = stores.studies.attempts(study.name, name)
    if earlier and earlier[-1].state == "running":
        attempt = earlier[-1]
    else:
        attempt = Attempt(group=name, number=len(earlier) + 1, micro_batch=study.evaluation.batch_size, state="running")
    from clusterlora.stages.evaluate import timed_as

    trying = {"power": {"baseline"}, "baseline": {"baseline"}, "gate": {REFERENCE, GATED}, "probe": set[str]()}
    methods = trying.get(request.part, {*study.methods})
    _run(request, study, attempt, stores, methods=methods, timed_as=timed_as(request))
    stores.studies.close_attempt(study.name, name, attempt.number, state="done")


def _run(
    request: TrainRequest | EvaluationRequest,
    study: Study,
    attempt: Attempt,
    stores: Stores,
    *,
    methods: Collection[str],
    timed_as: tuple[str, str],
) -> None:
    """Return once the attempt's run completed, and record how long it took beyond the work that it timed under this phase and part."""
    from clusterlora.stages.probe import record_begin

    def worked() -> float:
        return sum(seconds for phase, part, seconds in stores.studies.seconds(study.name) if (phase, part) == timed_as)

    before = worked()
    run = run_attempt(request, study, attempt, stores, methods=methods)
    took, own = seconds_on_worker(run), worked() - before
    # A run that was found had worked before.
    if took is not None and own > 0:
        # On average about a poll passes until a free worker finds a run, and until its end is noticed.
        record_begin(study.name, took + POLL_SECONDS, own, stores)
