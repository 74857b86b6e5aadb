"""Many runs at once; a failed one does not stop the others."""

from collections.abc import Iterable, Sequence

from prefect.futures import PrefectFuture, wait

from clusterlora.requests import EvaluationPart, EvaluationRequest, TrainingGroup
from tasks.dispatch import dispatch_evaluation, dispatch_training
from tasks.planning import shards_of


def train_all(study_name: str, groups: Iterable[TrainingGroup], *, after: str | None = None) -> None:
    """Train every group in a run of its own, queued in this order; raise the first failure after all have ended.

    Args:
        after: the group or evaluation whose run is queued before them.
    """
    futures: list[PrefectFuture[None]] = []
    for group in groups:
        futures.append(dispatch_training.submit(study_name, group, after=after))
        after = group.name
    _all_of(futures)


def evaluate_all(study_name: str, *, parts: Iterable[EvaluationPart] = ("test",), step: int | None = None) -> None:
    """Answer every shard of each part in a run of its own, one part after another; raise a part's first failure after all its runs."""
    n_shards = shards_of(study_name)
    for part in parts:
        requests = [
            EvaluationRequest(study_name=study_name, part=part, shard=shard, shards=n_shards, step=step) for shard in range(1, n_shards + 1)
        ]
        _all_of([dispatch_evaluation.submit(request) for request in requests])


def _all_of(futures: Sequence[PrefectFuture[None]]) -> None:
    wait(list(futures))
    for future in futures:
        future.result()
